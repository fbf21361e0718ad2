"""The short form of the fuzzer: a few thousand inputs to everything that reads what others wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fuzz import long
from tests.fuzz.long import run_chunk, run_inputs
from tests.fuzz.pictures import corpus, liars
from tests.fuzz.targets import TARGETS
from tests.server.test_leftovers import wait_until
from yolox_steps.decode import decode, prepare_process
from yolox_steps.errors import RequestError

INPUTS = 5000


def test_whatever_comes_is_answered_or_refused_in_words() -> None:
    done = run_chunk("everything", 0, INPUTS)
    assert not done.failures, "\n".join(f"input {failure.seed}: {failure.text}" for failure in done.failures)
    assert sum(done.outcomes.values()) == INPUTS
    for name in TARGETS:
        ends = [outcome for outcome in done.outcomes if outcome.startswith(f"{name}: ")]
        assert len(ends) > 1, f"every input of {name} ended alike: the fuzzer does not reach far"


def test_every_picture_of_the_corpus_is_read_and_every_liar_refused_or_bounded() -> None:
    prepare_process()
    for data in corpus():
        decode(data, 10_000)
    for data in liars():
        with pytest.raises(RequestError):
            decode(data, 10_000)


_KEPT: list[bytes] = []


def _leaks(seed: int) -> str:
    """Keeps 10 KB of every input."""
    _KEPT.append(bytes([seed % 256]) * 10_000)
    return "taken"


def test_what_every_input_leaves_in_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "leaking", (_leaks, INPUTS))
    (failure,) = run_chunk("leaking", 0, INPUTS).failures
    assert failure.text.startswith("memory grew by ")


def _fails_or_dies(seed: int) -> str:
    if seed == 1:
        raise ValueError("of its own")
    if seed == 3:
        os._exit(77)
    return "taken"


def test_what_failed_before_the_end_of_its_process_is_known() -> None:
    done = run_inputs(_fails_or_dies, 0, 6)
    (failed, died) = done.failures
    assert (failed.seed, failed.text.strip().splitlines()[-1]) == (1, "ValueError: of its own")
    assert (died.seed, died.text) == (3, "ended the process with code 77")
    assert done.outcomes == {"taken": 4, "fault": 2}


def _dies_at_once(*_: object) -> None:
    os._exit(139)


def test_what_did_not_run_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "_child", _dies_at_once)
    done = run_chunk("everything", 7, 100)
    assert [(failure.seed, failure.text) for failure in done.failures] == [
        (7, "ended the process with code 139 before this input: 100 were not tried")
    ]


def _writes_and_dies(seed: int) -> str:
    (Path(tempfile.mkdtemp()) / "file").write_text("content")
    if seed == 1:
        os._exit(77)
    return "taken"


def test_what_inputs_write_is_removed_even_where_they_end_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_inputs(_writes_and_dies, 0, 3).outcomes == {"taken": 2, "fault": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_leaves_no_directory(tmp_path: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.fuzz.long", "--only", "onnx", "--inputs", "100000"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=env) as run:
        wait_until(lambda: any(tmp_path.glob("fuzz-*/fuzz-*/*")))
        run.send_signal(stop)
        assert run.wait(30) != 0
    # ONNX Runtime has a file of its own there.
    assert list(tmp_path.glob("fuzz-*")) == []
