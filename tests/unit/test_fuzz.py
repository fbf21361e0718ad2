"""The short form of the fuzzer: a few thousand inputs to everything that reads what others wrote."""

from __future__ import annotations

import os

import pytest

from tests.fuzz import long
from tests.fuzz.long import run_chunk, run_inputs
from tests.fuzz.pictures import corpus, liars
from tests.fuzz.targets import TARGETS
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
