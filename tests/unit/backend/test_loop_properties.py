"""Whatever comes in, in any order, with any faults: every request is answered once, with its own data."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinstream import loop as loops
from pinstream.batching import Request
from pinstream.loop import Answer, Loop
from pinstream.tensors import Array, BatchSizes
from tests.host_engine import POISON, HostEngine

# Long enough for a busy machine, and the end of a deadlock.
PATIENCE_S = 60
WANTED = frozenset({"doubled"})

bucketed = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(lambda sizes: BatchSizes(tuple(sorted(sizes))))
exact = st.builds(
    lambda size, lanes: BatchSizes((size,), exact=True, lanes=lanes), st.integers(1, 12), st.integers(1, 4)
)
batch_sizes = st.one_of(bucketed, exact, st.none())


def requests_of(sizes: BatchSizes | None, seed: int, count: int, poisoned: float = 0.0) -> list[Request]:
    """Requests of random sizes and widths whose numbers occur nowhere else."""
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        items, width = rng.randint(1, 15) if sizes else 1, rng.randint(1, 3)
        data = (np.arange(items * width, dtype=np.float32) + 1000 * number).reshape(items, width)
        if rng.random() < poisoned:
            data[rng.randrange(items), 0] = POISON
        requests.append(Request({"row": data if sizes else data[0]}, items, WANTED))
    return requests


def sent(request: Request) -> Array:
    array = request.inputs["row"]
    assert isinstance(array, np.ndarray)
    return array


def is_poisoned(request: Request) -> bool:
    return bool((sent(request) == POISON).any())


@contextmanager
def engine(*args: Any, **options: Any) -> Iterator[HostEngine]:
    made = HostEngine(*args, **options)
    yield made
    assert made.in_flight == 0, "slots have leaked"
    made.close()


def within_time(work: Callable[[], list[Answer]]) -> list[Answer]:
    """What `work` gives; a deadlock fails the test instead of hanging it."""
    got: list[list[Answer]] = []
    thread = threading.Thread(target=lambda: got.append(work()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "deadlock"
    assert got, "the loop raised; see the thread's traceback"
    return got[0]


def assert_own_data(requests: Sequence[Request], answers: Sequence[Answer]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        if answer.error is None and not answer.cancelled:
            np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), sent(request) * 2)


fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fast
@given(batch_sizes, st.integers(1, 5), st.integers(0, 20), st.integers())
def test_every_request_gets_its_own_data(sizes: BatchSizes | None, slots: int, count: int, seed: int) -> None:
    requests = requests_of(sizes, seed, count)
    with engine(sizes, slots, seed=seed) as doubling:
        answers = within_time(lambda: Loop(doubling).run(requests))
    assert all(answer.error is None and not answer.cancelled for answer in answers)
    assert_own_data(requests, answers)


@fast
@given(batch_sizes, st.integers(1, 5), st.integers(0, 20), st.integers())
def test_an_error_is_answered_to_those_at_fault_only(
    sizes: BatchSizes | None, slots: int, count: int, seed: int
) -> None:
    requests = requests_of(sizes, seed, count, poisoned=0.2)
    with engine(sizes, slots, seed=seed) as doubling:
        answers = within_time(lambda: Loop(doubling).run(requests))
    assert [answer.error is not None for answer in answers] == list(map(is_poisoned, requests))
    assert_own_data(requests, answers)


@fast
@given(batch_sizes, st.integers(1, 4), st.integers(1, 20), st.integers())
def test_with_faults_and_delays_anywhere_nothing_is_mixed_up_or_lost(
    sizes: BatchSizes | None, slots: int, count: int, seed: int
) -> None:
    requests = requests_of(sizes, seed, count, poisoned=0.1)
    with engine(sizes, slots, seed=seed, delay_s=0.001, failures=0.2) as doubling:
        loop = Loop(doubling)
        answers = within_time(lambda: loop.run(requests))
        assert_own_data(requests, answers)
        assert all(answer.error for request, answer in zip(requests, answers, strict=True) if is_poisoned(request))
        assert all(set(answer.outputs) == WANTED for answer in answers if answer.error is None)


@fast
@given(batch_sizes, st.integers(1, 4), st.integers(1, 20), st.integers())
def test_who_gives_up_is_told_so_and_nobody_else(sizes: BatchSizes | None, slots: int, count: int, seed: int) -> None:
    rng = random.Random(seed)
    requests, gave_up = [], []
    for request in requests_of(sizes, seed, count):
        asked_until = rng.randint(0, 3) if rng.random() < 0.3 else None
        gave_up.append(asked_until is not None)
        countdown = iter([False] * (asked_until or 0))
        cancelled = (lambda c=countdown: next(c, True)) if asked_until is not None else (lambda: False)
        requests.append(Request(request.inputs, request.items, WANTED, cancelled))
    with engine(sizes, slots, seed=seed) as doubling, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "CANCEL_CHECK_AFTER_S", 0.0)
        answers = within_time(lambda: Loop(doubling).run(requests))
    assert all(gone or not answer.cancelled for gone, answer in zip(gave_up, answers, strict=True))
    assert all(answer.error is None for answer in answers)
    assert_own_data(requests, answers)


@settings(max_examples=60, deadline=None)
@given(batch_sizes, st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers())
def test_after_a_fault_that_nobody_thought_of_the_slots_are_free_again(
    sizes: BatchSizes | None, slots: int, count: int, crash: int, seed: int
) -> None:
    requests = requests_of(sizes, seed, count)
    with engine(sizes, slots, seed=seed, delay_s=0.001, crash=crash) as doubling:
        loop = Loop(doubling)
        try:
            loop.run(requests)
        except RuntimeError:
            assert doubling.in_flight == 0, "the next run would write into what is still in flight"
        doubling.crash = 0
        assert_own_data(requests, within_time(lambda: loop.run(requests)))


@pytest.mark.parametrize("seed", range(200))
def test_many_seeds_with_real_delays(seed: int) -> None:
    rng = random.Random(seed)
    sizes = rng.choice([BatchSizes((4,), exact=True, lanes=2), BatchSizes((1, 4, 8)), BatchSizes((3,)), None])
    requests = requests_of(sizes, seed, 12)
    with engine(sizes, rng.randint(1, 4), seed=seed, delay_s=0.002) as doubling:
        loop = Loop(doubling)
        for _ in range(2):
            answers = within_time(lambda: loop.run(requests))
            assert all(answer.error is None for answer in answers)
            assert_own_data(requests, answers)
