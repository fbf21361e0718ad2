"""`pinstream serve --awake`: a process a core that runs when nothing else does, for as long as the server is there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pinstream_cli.errors import CommandError
from pinstream_cli.triton import awake
from tests.server.serve_process import Serve

KEEPER = "import time; from pinstream_cli.triton.awake import awake\nwith awake(): time.sleep(600)"


def status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where there is no such process, or only its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def spinners(parent: int) -> dict[int, set[int]]:
    """Children that run only where nothing else does, and their cores."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        if status(pid)[1:2] == [str(parent)]:
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(pid) == os.SCHED_IDLE:
                    found[pid] = os.sched_getaffinity(pid)
    return found


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def one_a_core(parent: int) -> bool:
    return sorted(spinners(parent).values(), key=min) == [{core} for core in sorted(os.sched_getaffinity(0))]


def have_run(pids: Iterable[int]) -> bool:
    return all(sum(map(int, status(pid)[11:13])) > 0 for pid in pids)


def test_every_core_is_kept_awake_until_the_server_ends(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--awake")
    serve.wait_for("Stop with Ctrl-C")
    assert one_a_core(serve.process.pid)
    found = spinners(serve.process.pid)
    eventually(lambda: have_run(found))
    serve.process.send_signal(signal.SIGINT)
    assert serve.end() == 0
    assert not any(map(status, found))


def test_without_the_option_cores_may_sleep(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    assert not spinners(serve.process.pid)


def test_nothing_is_left_of_it_where_the_server_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER]) as keeper:
        eventually(lambda: one_a_core(keeper.pid))
        found = spinners(keeper.pid)
        keeper.kill()
    eventually(lambda: not any(map(status, found)))


@pytest.mark.parametrize(
    ("group", "file", "limit", "said"),
    [
        ("0::/a/b", "a/cpu.max", "200000 100000", "cpu.max is 200000 100000"),
        ("0::/", "cpu.max", "50000 100000", "cpu.max is 50000 100000"),
        ("3:cpu,cpuacct:/c", "cpu/c/cpu.cfs_quota_us", "150000", "cpu.cfs_quota_us is 150000"),
    ],
)
def test_where_cpu_time_is_limited_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, file: str, limit: str, said: str
) -> None:
    own = tmp_path / "own"
    own.write_text(f"{group}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(limit)
    monkeypatch.setattr(awake, "CGROUPS", tmp_path)
    monkeypatch.setattr(awake, "OWN_CGROUP", own)
    with pytest.raises(CommandError, match=said), awake.awake():
        pass
    (tmp_path / file).write_text("-1" if "quota" in file else "max 100000")
    with awake.awake():
        eventually(lambda: one_a_core(os.getpid()))
    assert not spinners(os.getpid())
