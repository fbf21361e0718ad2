"""Child processes and signals: none is lost, and none is waited for in vain. The processes are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from pinstream_cli.triton.child import Child
from pinstream_cli.triton.stops import uninterrupted


def child(*command: str) -> Child:
    with uninterrupted():
        return Child(command, os.environ)


def test_exit_codes_and_signals_are_told() -> None:
    assert child("sh", "-c", "exit 3").wait(10) == 3
    assert child("sh", "-c", "kill -SEGV $$").wait(10) == -signal.SIGSEGV
    sleeper = child("sleep", "60")
    assert sleeper.wait(0) is None
    assert sleeper.end(10) == sleeper.code == sleeper.wait() == -signal.SIGTERM


def test_what_does_not_listen_is_killed_with_all_that_it_started() -> None:
    deaf = child("bash", "-c", "trap '' TERM; sleep 60 & echo $!; wait")
    grandchild = int(deaf.output.readline())
    assert deaf.end(0.1) == -signal.SIGKILL
    # Its new parent may not have waited for it yet.
    state = subprocess.run(["ps", "-o", "stat=", str(grandchild)], capture_output=True, text=True, check=False).stdout
    assert state.strip()[:1] in ("", "Z")


def test_its_end_is_seen_where_an_interrupted_wait_has_left_the_lock_of_subprocess_taken() -> None:
    ended, sleeper = child("true"), child("sleep", "60")
    for started in (ended, sleeper):
        started._process._waitpid_lock.acquire()  # type: ignore[attr-defined]
    assert ended.wait(10) == 0
    assert sleeper.end(10) == -signal.SIGTERM


STOPPED_IN_A_FORK = """
import os, signal
from pinstream_cli.triton.child import Child
from pinstream_cli.triton.stops import uninterrupted

signal.signal(signal.SIGTERM, signal.default_int_handler)
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGTERM))
try:
    with uninterrupted():
        child = Child(["sleep", "60"], os.environ)
except KeyboardInterrupt:
    print("heard", child.end(10))
"""


def test_a_signal_while_it_is_forked_is_heard_and_the_child_is_not_lost() -> None:
    """What is raised in a fork's hooks is passed over, and Python has hooks of its own there (logging)."""
    done = subprocess.run([sys.executable, "-c", STOPPED_IN_A_FORK], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"heard {-signal.SIGTERM}\n", "")
