"""What the soak measures of a server's processes, of which some are about to end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import soak_measure
from tests.processes import Family, Process
from tests.soak import watchdog

SERVE: Any = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()))
HERE = Process(os.getpid(), 0)
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def ended() -> Iterator[Process]:
    """A process that has ended, and that nobody has waited for."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield Process(process.pid, 0)


def test_what_has_just_ended_is_not_measured(monkeypatch: pytest.MonkeyPatch, ended: Process) -> None:
    # First one that nobody has waited for, then one that is gone, then two versions at once.
    gone = Process(2**22 + 1, 0)
    families = iter([Family(HERE, stubs, (HERE,)) for stubs in ((ended,), (gone,), (HERE, HERE), (HERE,))])
    monkeypatch.setattr(soak_measure, "family", lambda _: next(families))
    sample = soak_measure.measure(SERVE, instances=1, engines=1, patience_s=60)
    assert sample is not None
    assert {f"{of}{what}" for of in ("", "stubs_", "engines_") for what in ("resident_mib", "threads", "files")} == {
        name for name in sample if name not in ("shm_mib", "regions")
    }
    assert sample["stubs_resident_mib"] == pytest.approx(sample["resident_mib"], abs=1)
    assert next(families, None) is None


def test_a_version_that_stays_is_not_measured_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_measure, "family", lambda _: Family(HERE, (HERE, HERE), ()))
    assert soak_measure.measure(SERVE, instances=1, engines=0, patience_s=0.1) is None


def test_what_serve_says_of_its_processes_is_told_and_nothing_from_before() -> None:
    died = "RESTART the process of model 'classifier' has died (process 3)"
    text = f"WARNING others can write it\nReady.\nStop with Ctrl-C.\nW1127 of Triton's\n{died}\nStop with Ctrl-C.\n"
    assert watchdog(SimpleNamespace(text=text)) == [died]  # type: ignore[arg-type]


def test_regions_that_are_open_once_are_no_files_that_grow(tmp_path: Path) -> None:
    count = soak_measure._files
    before = count(DESCRIPTORS)
    with contextlib.ExitStack() as stack:
        region = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", delete=False))
        assert count(DESCRIPTORS) == before
        stack.enter_context(open(region.name, "rb"))
        stack.enter_context((tmp_path / "other").open("wb"))
        assert count(DESCRIPTORS) == before + 2
        Path(region.name).unlink()
        assert count(DESCRIPTORS) == before + 3
