"""What `make chaos` says of processes: of real ones that run, have ended or are zombies."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Family, Process, out_of_place, still_there


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started
        started.kill()


def process(child: subprocess.Popen[bytes]) -> Process:
    return Process(child.pid, int(_fields(child)[19]))


def _fields(child: subprocess.Popen[bytes]) -> list[str]:
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()


def test_what_runs_and_what_nobody_has_waited_for_is_there(child: subprocess.Popen[bytes]) -> None:
    one = process(child)
    later = dataclasses.replace(one, began=one.began + 1)
    assert still_there([one, later]) == [one]
    child.kill()
    while _fields(child)[0] != "Z":
        pass
    assert still_there([one]) == [one]
    child.wait()
    assert still_there([one]) == []


def test_what_was_killed_or_left_behind_may_not_be_there(child: subprocess.Popen[bytes]) -> None:
    one = process(child)
    server, stub, old, new = (Process(2**31 - i, 0) for i in range(4))
    good = Family(server, (stub,), (new,))
    assert out_of_place(Family(server, (stub,), (old,)), good, [old], 1, 1) == []
    # Killed and seen again, whether or not the server counts it among its own; an orphan of a server that is gone.
    stays = dataclasses.replace(good, engines=(one,))
    for before, now, killed in ((stays, stays, [one]), (good, good, [one]), (stays, good, [])):
        assert out_of_place(before, now, killed, 1, 1) == [f"should be gone and is still there: {one}"]
    assert out_of_place(stays, stays, [], 1, 1) == []


def test_each_instance_has_one_process_and_they_share_one_engine() -> None:
    server, *more = (Process(2**31 - i, 0) for i in range(5))
    for stubs, engines, what in ((2, 0, "shared engines"), (2, 2, "shared engines"), (1, 1, "instances")):
        found = Family(server, tuple(more[:stubs]), tuple(more[2 : 2 + engines]))
        (text,) = out_of_place(found, found, [], 2, 1)
        assert text.startswith(f"processes of {what}: expected ")
