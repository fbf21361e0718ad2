"""Who used the CPU: our own processes by name, and everybody else together. Read from Linux's /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of the first line of /proc/stat behind "cpu": user nice system idle iowait irq softirq steal.
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
ENDED_CHILDREN = "perf_analyzer"


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds so far.

    Attributes:
        at: When, by time.monotonic.
        busy: Of the whole machine; time that the hypervisor gave to others counts.
        by_process: Of this process and its descendants, by name. Children that have ended are perf_analyzer's runs.
    """

    at: float
    busy: float
    by_process: dict[str, float]

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """What was used in between; `at` becomes the seconds in between."""
        used = {name: s - earlier.by_process.get(name, 0.0) for name, s in self.by_process.items()}
        return CpuTimes(self.at - earlier.at, self.busy - earlier.busy, used)

    @property
    def foreign(self) -> float:
        """Of a difference: the share of all cores that processes outside our tree took."""
        return max(0.0, self.busy - sum(self.by_process.values())) / (self.at * (os.cpu_count() or 1))


def cpu_times() -> CpuTimes:
    """CPU seconds of this process, of its descendants, and of the machine."""
    table = dict(filter(None, map(_read_process, PROC.glob("[0-9]*"))))
    used: dict[str, float] = {}
    for pid in _descendants(os.getpid(), {pid: parent for pid, (parent, _, _) in table.items()}):
        _, own, _ = table[pid]
        name = process_name(pid)
        used[name] = used.get(name, 0.0) + own
    used[ENDED_CHILDREN] = table[os.getpid()][2]
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return CpuTimes(time.monotonic(), sum(int(fields[i]) for i in BUSY_FIELDS) / TICKS_PER_S, used)


def _read_process(directory: Path) -> tuple[int, tuple[int, float, float]] | None:
    """Process id, and its parent, its CPU seconds, and those of its children that have ended; None where it is gone."""
    try:
        text = (directory / "stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold blanks and parentheses of its own.
    fields = text.rpartition(")")[2].split()
    parent, user, system, children_user, children_system = (int(fields[i]) for i in (1, 11, 12, 13, 14))
    return int(directory.name), (
        parent,
        (user + system) / TICKS_PER_S,
        (children_user + children_system) / TICKS_PER_S,
    )


def _descendants(root: int, parents: dict[int, int]) -> list[int]:
    family = [root]
    for pid in family:  # grows while it is gone through
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def process_name(pid: int) -> str:
    """What a process of ours is: `bench` itself, tritonserver, the model that a Python stub serves, or its engine."""
    if pid == os.getpid():
        return "bench"
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    program = Path(os.fsdecode(arguments[0])).name
    if program == "triton_python_backend_stub" and len(arguments) > 1:
        return Path(os.fsdecode(arguments[1])).parent.parent.name  # <repository>/<model>/<version>/model.py
    if program.startswith("python") and Path(os.fsdecode(arguments[1])).name == "engine_process.py":
        return "shared engine"
    return "bench workers" if program.startswith("python") else program
