"""Processes that die: which of them take a server down. The processes are real, and so are the words of the log."""

from __future__ import annotations

import contextlib
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

QUIET = "input()"
TALKS = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); input()"


@contextlib.contextmanager
def started(tmp_path: Path, code: str = QUIET, name: str = "classifier_0") -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours that looks like a stub of version 2 to /proc."""
    program = tmp_path / "triton_python_backend_stub"
    program.symlink_to(sys.executable)
    script = tmp_path / "classifier" / "2" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text(code)
    between = ["region", "1048576", "1048576", str(os.getpid()), "python", "336"]
    with subprocess.Popen([program, script, *between, name, "DEFAULT"], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/comm").read_text() != "triton_python_b\n":
            assert time.monotonic() < deadline
        yield process
        process.kill()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with started(tmp_path) as process:
        yield process


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


@pytest.mark.parametrize(
    ("code", "name", "log", "ends"),
    [
        (TALKS, "classifier_0", [loading(TWO)], True),
        (TALKS, "classifier_0", [loading(ONE), LOADED, loading(TWO)], True),
        (TALKS, "classifier_0", [loading(TWO), LOADED], False),
        (TALKS, "classifier_0", [loading(TWO), LOADED, loading(ONE)], False),
        # Triton waits for good for the first word of one, and for the last of one that completes a configuration.
        (QUIET, "classifier_0", [loading(TWO)], False),
        (TALKS, "classifier", [loading(TWO)], False),
    ],
)
def test_only_what_is_being_loaded_and_has_talked_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, name: str, log: list[str], ends: bool
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    with started(tmp_path, code, name) as stub:
        stubs = Stubs(os.getpid(), after(*log))
        deadline = time.monotonic() + (10 if ends else 1)
        while stub.poll() is None and time.monotonic() < deadline:
            stubs.end_loads()
            time.sleep(0.02)
        assert stub.poll() == (-signal.SIGKILL if ends else None)


def wait_until(stub: subprocess.Popen[bytes], state: str) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{stub.pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < deadline


def test_one_that_is_stopped_counts_as_dead_and_time_that_nobody_looked_does_not(
    monkeypatch: pytest.MonkeyPatch, stub: subprocess.Popen[bytes]
) -> None:
    for name, seconds in {"LOOK_EVERY_S": 0.0, "STOPPED_S": 0.2, "UNSEEN_S": 0.05}.items():
        monkeypatch.setattr(module, name, seconds)
    stubs = Stubs(os.getpid(), after(loading(TWO), LOADED))
    stubs.look()
    stub.send_signal(signal.SIGSTOP)
    wait_until(stub, "T")
    # As where all of the service is frozen and thawed.
    for _ in range(3):
        time.sleep(0.4)
        stubs.look()
        assert stubs.dead() is None
    stub.send_signal(signal.SIGCONT)
    wait_until(stub, "S")
    stubs.look()
    stub.send_signal(signal.SIGSTOP)
    wait_until(stub, "T")
    deadline = time.monotonic() + 10
    while stubs.dead() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        stubs.look()
    assert (
        str(stubs.dead())
        == f"the process of model 'classifier' has been stopped for 0 s, as by SIGSTOP (process {stub.pid})"
    )
