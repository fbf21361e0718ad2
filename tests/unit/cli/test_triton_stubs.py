"""Processes that die: which of them take a server down. The processes are real, and so are the words of the log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstream_cli.triton import stubs as module
from pinstream_cli.triton.stubs import Stubs
from tests.unit.cli.test_triton_loads import LOADED, ONE, TWO, after, failed, loading


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours that looks like a stub of version 2 to /proc."""
    name = tmp_path / "triton_python_backend_stub"
    name.symlink_to(sys.executable)
    script = tmp_path / "classifier" / "2" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("input()")
    with subprocess.Popen([name, script], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/comm").read_text() != "triton_python_b\n":
            assert time.monotonic() < deadline
        yield process
        process.kill()


ALIVE, AT_ONCE = True, False


@pytest.mark.parametrize(
    ("before", "seen_alive", "then", "dead", "stuck"),
    [
        ([loading(TWO), LOADED], ALIVE, [], True, False),
        # While it is loaded anew it still serves.
        ([loading(TWO), LOADED], ALIVE, [loading(TWO)], True, False),
        ([loading(TWO), LOADED], ALIVE, [loading(TWO), *failed(TWO)], True, False),
        ([loading(TWO)], ALIVE, [], False, True),
        ([loading(TWO)], ALIVE, [LOADED], True, False),
        ([loading(TWO)], ALIVE, failed(TWO), False, False),
        ([loading(ONE), LOADED, loading(TWO)], ALIVE, failed(TWO), False, False),
        # Too early to be asked what it is.
        ([loading(TWO)], AT_ONCE, [], False, True),
        ([loading(TWO)], AT_ONCE, [LOADED], True, False),
        ([loading(TWO)], AT_ONCE, failed(TWO), False, False),
    ],
)
def test_a_dead_stub_counts_where_its_version_was_served(
    monkeypatch: pytest.MonkeyPatch,
    stub: subprocess.Popen[bytes],
    before: list[str],
    seen_alive: bool,
    then: list[str],
    dead: bool,
    stuck: bool,
) -> None:
    for name, seconds in {"LOOK_EVERY_S": 0.0, "DEAD_S": 0.05, "STUCK_S": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)
    loads = after(*before)
    stubs = Stubs(os.getpid(), loads)
    if seen_alive:
        stubs.look()
    os.kill(stub.pid, signal.SIGKILL)
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
    stubs.look()
    assert (stubs.dead(), stubs.stuck()) == (None, None), "it may be about to be reaped"
    for line in then:
        loads.read(line)
    time.sleep(0.15)
    stubs.look()
    assert (stubs.dead() is not None, stubs.stuck() is not None) == (dead, stuck)
    stub.wait()
    stubs.look()
    assert (stubs.dead(), stubs.stuck()) == (None, None), "it is reaped"


def test_a_load_that_failed_before_excuses_no_death(
    monkeypatch: pytest.MonkeyPatch, stub: subprocess.Popen[bytes]
) -> None:
    for name, seconds in {"LOOK_EVERY_S": 0.0, "DEAD_S": 0.0}.items():
        monkeypatch.setattr(module, name, seconds)
    loads = after(loading(ONE), *failed(ONE), loading(TWO))
    os.kill(stub.pid, signal.SIGKILL)
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
    # Too late to ask whose it was.
    stubs = Stubs(os.getpid(), loads)
    stubs.look()
    loads.read(LOADED)
    assert loads.failed
    assert stubs.dead() is not None
