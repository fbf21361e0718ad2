"""Whatever comes in, in any order, with any faults: every request is answered once, with its own data."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinstream import loop as loops
from pinstream.batching import Request
from pinstream.engines.base import Slot
from pinstream.executions import Executions, Finish
from pinstream.loop import Answer, Loop
from pinstream.tensors import Array, BatchSizes
from tests.host_engine import FACTORS, POISON, HostEngine, HostSlot

# Long enough for a busy machine, and the end of a deadlock.
PATIENCE_S = 60
WANTED = [frozenset(FACTORS), *(frozenset({name}) for name in FACTORS)]

bucketed = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(lambda sizes: BatchSizes(tuple(sorted(sizes))))
exact = st.builds(
    lambda size, lanes: BatchSizes((size,), exact=True, lanes=lanes), st.integers(1, 12), st.integers(1, 4)
)
batch_sizes = st.one_of(bucketed, exact, st.none())


def requests_of(
    sizes: BatchSizes | None, seed: int, count: int, poisoned: float = 0.0, first: int = 0
) -> list[Request]:
    """Requests of random sizes and widths, for any outputs, whose numbers occur nowhere else."""
    rng = random.Random(seed)
    requests = []
    for number in range(first, first + count):
        items, width = rng.randint(1, 15) if sizes else 1, rng.randint(1, 3)
        data = (np.arange(items * width, dtype=np.float32) + 1000 * number).reshape(items, width)
        if rng.random() < poisoned:
            data[rng.randrange(items), 0] = POISON
        requests.append(Request({"row": data if sizes else data[0]}, items, rng.choice(WANTED)))
    return requests


def sent(request: Request) -> Array:
    array = request.inputs["row"]
    assert isinstance(array, np.ndarray)
    return array


def is_poisoned(request: Request) -> bool:
    return bool((sent(request) == POISON).any())


@contextmanager
def engine(*args: Any, kind: type[HostEngine] = HostEngine, **options: Any) -> Iterator[HostEngine]:
    made = kind(*args, **options)
    yield made
    assert made.in_flight == 0, "slots have leaked"
    made.close()


def copied(answer: Answer) -> Answer:
    """An answer that lasts beyond its loop's next run."""
    return replace(answer, outputs={name: array.copy() for name, array in answer.outputs.items()})


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
            assert set(answer.outputs) == request.wanted
            for name, output in answer.outputs.items():
                np.testing.assert_array_equal(np.asarray(output), sent(request) * FACTORS[name])


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


class Noting(HostEngine):
    """Notes what is launched: of each batch the requests, by number, once for each of their items."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.launched: list[list[int]] = []

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        super().enqueue(slot, wanted)
        assert isinstance(slot, HostSlot)
        first = slot.rows.reshape(len(slot.rows) if self.spec.batch else 1, -1)[:, 0]
        self.launched.append([int(value) // 1000 for value in first if not np.isnan(value)])


@fast
@given(batch_sizes, st.integers(1, 4), st.integers(1, 20), st.integers())
def test_of_who_has_given_up_nothing_more_is_launched_and_those_and_nobody_else_are_told_so(
    sizes: BatchSizes | None, slots: int, count: int, seed: int
) -> None:
    rng = random.Random(seed)
    # After how many batches a request's sender gives up.
    after = {number: rng.randint(0, 6) for number in range(count) if rng.random() < 0.4}
    with engine(sizes, slots, seed=seed, kind=Noting) as doubling, pytest.MonkeyPatch.context() as patch:
        assert isinstance(doubling, Noting)
        launched = doubling.launched

        def given_up(number: int) -> bool:
            return number in after and len(launched) >= after[number]

        requests = [replace(r, cancelled=partial(given_up, n)) for n, r in enumerate(requests_of(sizes, seed, count))]
        patch.setattr(loops, "CANCEL_CHECK_AFTER_S", 0.0)
        answers = within_time(lambda: Loop(doubling).run(requests))
    for number, batches in after.items():
        assert not any(number in batch for batch in launched[batches:])
    items = Counter(number for batch in launched for number in batch)
    assert [answer.cancelled for answer in answers] == [items[n] < r.items for n, r in enumerate(requests)]
    assert all(answer.error is None for answer in answers)
    assert_own_data(requests, answers)


def some_give_up(requests: Sequence[Request], rng: random.Random) -> list[Request]:
    """Of each fourth, its sender gives up by the time that it is asked for up to the third time."""

    def after(times: int) -> Callable[[], bool]:
        still_there = iter([False] * times)
        return lambda: next(still_there, True)

    return [replace(r, cancelled=after(rng.randint(0, 2))) if rng.random() < 0.25 else r for r in requests]


def assert_answered(requests: Sequence[Request], answers: Sequence[Answer]) -> None:
    """Each with one thing: its own data, an error, or that it was cancelled, where it was."""
    assert_own_data(requests, answers)
    for request, answer in zip(requests, answers, strict=True):
        assert not answer.cancelled or request.cancelled()


@fast
@given(batch_sizes, st.integers(1, 4), st.integers(1, 20), st.integers())
def test_with_faults_delays_and_senders_that_give_up_all_are_answered(
    sizes: BatchSizes | None, slots: int, count: int, seed: int
) -> None:
    requests = some_give_up(requests_of(sizes, seed, count, poisoned=0.1), random.Random(seed))
    with (
        engine(sizes, slots, seed=seed, delay_s=0.001, failures=0.2) as doubling,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(loops, "CANCEL_CHECK_AFTER_S", 0.0)
        assert_answered(requests, within_time(lambda: Loop(doubling).run(requests)))


@settings(max_examples=60, deadline=None)
@given(batch_sizes, st.integers(1, 3), st.integers(1, 8), st.integers(0, 20), st.integers())
def test_executions_answer_all_with_faults_delays_and_senders_that_give_up(
    sizes: BatchSizes | None, executions: int, batches: int, crash: int, seed: int
) -> None:
    rng = random.Random(seed)
    handed = [
        some_give_up(requests_of(sizes, seed + i, rng.randint(0, 6), 0.1, first=10 * i), rng) for i in range(batches)
    ]
    answered: SimpleQueue[tuple[int, list[Answer] | None]] = SimpleQueue()

    def starting(number: int) -> Callable[[Loop], Finish]:
        def start(loop: Loop) -> Finish:
            try:
                run = loop.start(handed[number])
            except RuntimeError:
                answered.put((number, None))
                raise

            def finish() -> None:
                try:
                    answered.put((number, [copied(answer) for answer in loop.finish(run)]))
                except RuntimeError:
                    answered.put((number, None))

            return finish

        return start

    def work() -> list[Answer]:
        for number in range(batches):
            with contextlib.suppress(RuntimeError):
                running.run(starting(number))
        running.close()
        return []

    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(engine(sizes, 2, seed=seed + i, delay_s=0.001, failures=0.1, crash=crash))
            for i in range(executions)
        ]
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(loops, "CANCEL_CHECK_AFTER_S", 0.0)
        running = Executions([Loop(one) for one in engines])
        within_time(work)
    got = [answered.get() for _ in range(answered.qsize())]
    assert sorted(number for number, _ in got) == list(range(batches))
    for number, answers in got:
        # The fault that nobody thought of is the whole batch's answer.
        if answers is not None:
            assert_answered(handed[number], answers)
    assert sum(answers is None for _, answers in got) <= (executions if crash else 0)


@settings(max_examples=60, deadline=None)
@given(batch_sizes, st.integers(1, 4), st.integers(1, 12), st.integers(1, 30), st.integers())
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
        answers = within_time(lambda: loop.run(requests))
        assert all(answer.error is None for answer in answers)
        assert_own_data(requests, answers)


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
