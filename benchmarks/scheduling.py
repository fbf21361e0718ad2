"""Whether the engine's thread waits for a core: p99 at random arrivals under several scheduling policies, in turns.

    python -m benchmarks.scheduling --model-repository models --name detector --rate 1930 --out scheduling.json

The policies are set from outside, on one running server, so that nothing but them differs between two windows.
SCHED_FIFO takes root, and all of them a nice value of 0. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.outcome import about, write
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.target import Source, target
from pinstream_cli.console import Console

ENGINE, STUB, SERVER = "engine_process.py", "triton_python_backend_stub", "tritonserver"
PROC = Path("/proc")
# sched_setattr(2), which neither Python nor the C library has a name for: x86-64, and everything newer.
SCHED_SETATTR = {"x86_64": 314}.get(os.uname().machine, 274)
SLICE_NS = 100_000


def processes(name: str) -> list[int]:
    """Process ids of those that have `name` in their command line's first two words."""
    found = []
    for entry in PROC.glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")[:2]
        except OSError:
            continue
        if any(Path(word.decode(errors="replace")).name == name for word in words):
            found.append(int(entry.parent.name))
    return found


def threads(names: tuple[str, ...]) -> Iterator[int]:
    """Thread ids of all processes of these names."""
    for name in names:
        for process in processes(name):
            for task in (PROC / str(process) / "task").iterdir():
                yield int(task.name)


def policy(kind: int, priority: int = 0) -> Callable[[int], None]:
    """Sets a policy for a thread."""
    return lambda thread: os.sched_setscheduler(thread, kind, os.sched_param(priority))


def usual(thread: int, slice_ns: int = 0) -> None:
    """SCHED_OTHER, with slices of its own: since Linux 6.12 whoever asks for less at a time gets it sooner."""
    attributes = struct.pack("=IIQiIQQQII", 56, os.SCHED_OTHER, 0, 0, 0, slice_ns, 0, 0, 0, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(SCHED_SETATTR, thread, attributes, 0):
        raise OSError(ctypes.get_errno(), "sched_setattr")


@dataclass(frozen=True)
class Setting:
    """Who is scheduled how; everything else is SCHED_OTHER.

    Attributes:
        name: For the result.
        who: Names of the processes.
        how: Sets it for a thread.
        client: Whether perf_analyzer is SCHED_BATCH.
    """

    name: str
    who: tuple[str, ...] = ()
    how: Callable[[int], None] = usual
    client: bool = False


SETTINGS = (
    Setting("as it is"),
    Setting("instances SCHED_BATCH", (STUB,), policy(os.SCHED_BATCH)),
    Setting("all but the engine SCHED_BATCH", (STUB, SERVER), policy(os.SCHED_BATCH), client=True),
    Setting("the engine SCHED_FIFO", (ENGINE,), policy(os.SCHED_FIFO, 1)),
    Setting("the engine has slices of 0.1 ms", (ENGINE,), partial(usual, slice_ns=SLICE_NS)),
)


def apply(setting: Setting) -> None:
    for thread in threads((ENGINE, STUB, SERVER)):
        usual(thread)
    for thread in threads(setting.who):
        setting.how(thread)
    # What this process starts is scheduled as it is itself.
    os.sched_setscheduler(0, os.SCHED_BATCH if setting.client else os.SCHED_OTHER, os.sched_param(0))


@dataclass(frozen=True)
class Waited:
    """What the kernel counts of the engine's own thread, and of the machine.

    Attributes:
        ran: Seconds on a core.
        waited: Seconds in which it could have run and had no core.
        preempted: How often it lost its core to another.
        stolen: Share of all CPU time that the machine's host gave to others; of a difference of two.
    """

    ran: float
    waited: float
    preempted: int
    stolen: tuple[int, int]

    @staticmethod
    def now() -> Waited:
        """Of the one engine's process there is."""
        (engine,) = processes(ENGINE)
        ran, waited, _ = (int(word) for word in (PROC / str(engine) / "schedstat").read_text().split())
        status = (PROC / str(engine) / "status").read_text()
        preempted = int(status.split("nonvoluntary_ctxt_switches:")[1].split()[0])
        ticks = [int(word) for word in (PROC / "stat").read_text().splitlines()[0].split()[1:]]
        return Waited(ran / 1e9, waited / 1e9, preempted, (ticks[7], sum(ticks[:8])))

    def since(self, before: Waited) -> dict[str, float]:
        """What came to it, for a row."""
        stolen = (self.stolen[0] - before.stolen[0]) / max(1, self.stolen[1] - before.stolen[1])
        return {
            "engine_ran_s": round(self.ran - before.ran, 3),
            "engine_waited_s": round(self.waited - before.waited, 4),
            "engine_preempted": self.preempted - before.preempted,
            "stolen": round(stolen, 4),
        }


def window(served: Served, seconds: float, setting: Setting) -> dict[str, Any] | None:
    """A row; None where this machine, or this user, may not schedule so."""
    try:
        apply(setting)
    except PermissionError:
        print(f"{setting.name}: not allowed here", flush=True)
        return None
    before = Waited.now()
    sample = served.measure(seconds)
    apply(SETTINGS[0])
    row = {"name": setting.name, "images_per_s": round(sample.images_per_s), "p50_ms": sample.p50_ms}
    row |= {"p99_ms": sample.p99_ms, **Waited.now().since(before)}
    print(json.dumps(row), flush=True)
    return row


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second, at random times")
    parser.add_argument("--window", type=float, default=6.0, help="seconds")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--limit", type=float, default=400, help="seconds of windows; no round begins after these")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def in_turn(given: argparse.Namespace, served: Served) -> list[dict[str, Any]]:
    """Windows of all settings, in another order each time."""
    windows: list[dict[str, Any]] = []
    end = time.monotonic() + given.limit
    for repetition in range(given.repetitions):
        turn = repetition % len(SETTINGS)
        for setting in (*SETTINGS[turn:], *SETTINGS[:turn]):
            if time.monotonic() < end and (found := window(served, given.window, setting)):
                windows.append(found)
    return windows


def medians(name: str, windows: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """The row of a setting that has windows."""
    p99 = [found["p99_ms"] for found in windows]
    return {
        "name": name,
        "batch": 1,
        "rate": rate,
        "images_per_s": median(found["images_per_s"] for found in windows),
        "p50_ms": median(found["p50_ms"] for found in windows),
        "p99_ms": median(p99),
        "spread": round((max(p99) - min(p99)) / median(p99), 3),
    }


def main() -> None:
    given = arguments()
    console = Console(stderr=True)
    source = Source(None, name=given.name, repository=given.model_repository)
    with tempfile.TemporaryDirectory() as scratch, target(source, console, batches=[1]) as (server, model):
        load = Load.of(model.name, model.spec, random_item(model.spec, {}), Path(scratch) / "input.json")
        client, transport = Client(find_perf_analyzer(console.print), server), TRANSPORTS["grpc+shm"]
        # Until Triton's shared memory has grown as large as it gets.
        Served(client, transport, replace(load, concurrency=256)).measure(3.0)
        served = Served(client, transport, replace(load, rate=given.rate))
        served.measure(2.0)
        windows = in_turn(given, served)
        notes = [describe(model)]
    by_setting = {s.name: [found for found in windows if found["name"] == s.name] for s in SETTINGS}
    rows = [medians(name, of_it, given.rate) for name, of_it in by_setting.items() if of_it]
    write({**about(), "notes": notes, "rows": rows, "windows": windows}, given.out)


if __name__ == "__main__":
    main()
