"""Batches across instances: whatever is handed over, in any order, with any faults, comes back once and as its own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Slot
from pinstream.errors import EngineError
from pinstream.shared.forming import Former, Submission
from pinstream.tensors import Array, BatchSizes, Profile
from tests.host_engine import FACTORS, POISON, HostEngine, HostSlot

WANTED = [frozenset(FACTORS), *(frozenset({name}) for name in FACTORS)]
bucketed = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(lambda sizes: BatchSizes(tuple(sorted(sizes))))
exact = st.builds(
    lambda size, lanes, best: BatchSizes((size,), exact=True, lanes=lanes, best=min(best, size)),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 12),
)
batch_sizes = st.one_of(bucketed, exact, st.none())


class Rows(Submission):
    """Rows that lie in several places."""

    def __init__(self, parts: Sequence[Array], batched: bool, wanted: frozenset[str] = WANTED[0]) -> None:
        items = sum(map(len, parts)) if batched else 1
        super().__init__({"row": parts}, items, wanted)
        self.sent = np.concatenate(parts) if batched else parts[0]
        self.found = {name: np.full_like(self.sent, np.nan) for name in wanted}
        self.replies = 0

    def deliver(self, outputs: Mapping[str, Array | DeviceArray], offset: int | None, start: int, count: int) -> None:
        for name, found in self.found.items():
            whole = outputs[name]
            assert isinstance(whole, np.ndarray)
            if offset is None:
                found[...] = whole
            else:
                found[start : start + count] = whole[offset : offset + count]

    def reply(self) -> None:
        self.replies += 1

    def assert_found(self) -> None:
        """What came back is its own."""
        for name, found in self.found.items():
            np.testing.assert_array_equal(found, self.sent * FACTORS[name])


def alike(count: int, items: int = 1) -> list[Rows]:
    """So many, each of `items` rows of its number."""
    return [Rows([np.full((items, 1), number, np.float32)], batched=True) for number in range(count)]


def submissions(sizes: BatchSizes | None, seed: int, count: int, poisoned: float = 0.0) -> list[Rows]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        width = rng.randint(1, 2)
        lengths = [rng.randint(1, 7) for _ in range(rng.randint(1, 3))] if sizes else [1]
        data = (np.arange(sum(lengths) * width, dtype=np.float32) + 1000 * number).reshape(-1, width)
        if rng.random() < poisoned:
            data[rng.randrange(len(data)), 0] = POISON
        parts = np.split(data, np.cumsum(lengths)[:-1]) if sizes else [data[0]]
        made.append(Rows(parts, batched=sizes is not None, wanted=rng.choice(WANTED)))
    return made


def run(engine: HostEngine, todo: Sequence[Rows], seed: int) -> None:
    """Hand over and land in random order, as a server with several instances would."""
    rng = random.Random(seed)
    former = Former(engine)
    coming = list(todo)
    # With the others, and alone.
    most = 2 * sum(submission.items for submission in todo)
    while coming or former.started:
        if coming and (not former.started or rng.random() < 0.6):
            former.submit(coming.pop(0))
        elif rng.random() < 0.3:
            former.due()
        else:
            land(engine, former)
            assert engine.batches <= most, "something runs again and again"
        while former.finished:
            former.finished.popleft().reply()
    while former.finished:
        former.finished.popleft().reply()


def land(engine: HostEngine, former: Former) -> None:
    batch = former.started.popleft()
    error = None
    try:
        outputs = engine.wait(batch.slot)
    except EngineError as failure:
        error = failure
    former.computed()
    if error is None:
        for part in batch.parts:
            offset = part.offset if engine.spec.batch else None
            part.submission.deliver(outputs, offset, part.start, part.count)
    former.done(batch, error)


@settings(max_examples=150, deadline=None)
@given(batch_sizes, st.integers(1, 6), st.integers(0, 2**32), st.integers(1, 25))
def test_everything_comes_back_once_and_as_its_own(sizes: BatchSizes | None, slots: int, seed: int, count: int) -> None:
    engine = HostEngine(sizes, slots)
    todo = submissions(sizes, seed, count)
    run(engine, todo, seed)
    for submission in todo:
        assert submission.replies == 1
        assert submission.error is None
        submission.assert_found()
    engine.close()


@settings(max_examples=100, deadline=None)
@given(batch_sizes, st.integers(1, 6), st.integers(0, 2**32))
def test_only_those_at_fault_get_the_error(sizes: BatchSizes | None, slots: int, seed: int) -> None:
    engine = HostEngine(sizes, slots)
    todo = submissions(sizes, seed, 15, poisoned=0.2)
    run(engine, todo, seed)
    for submission in todo:
        assert submission.replies == 1
        if (submission.sent == POISON).any():
            assert "poisoned" in str(submission.error)
        else:
            assert submission.error is None
            submission.assert_found()
    engine.close()


class Crashing(HostEngine):
    """Raises what is no error of an engine as a batch starts, as TensorRT's bindings do now and then."""

    crashes = 0

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        assert isinstance(slot, HostSlot)
        if (slot.rows == POISON).any():
            self.crashes += 1
            if self.crashes > 1000:
                pytest.fail("it is started again and again")
            raise RuntimeError("infer_shapes error code: -1")
        super().enqueue(slot, wanted)


def test_what_nobody_foresaw_fails_no_neighbour(caplog: pytest.LogCaptureFixture) -> None:
    engine = Crashing(BatchSizes((1, 4)))
    todo = submissions(engine.spec.batch, 3, 15, poisoned=0.2)
    run(engine, todo, 3)
    for submission in todo:
        if (submission.sent == POISON).any():
            assert str(submission.error) == "internal error (RuntimeError); see the server's log"
        else:
            submission.assert_found()
    assert "infer_shapes error code: -1" in caplog.text
    engine.close()


@settings(max_examples=100, deadline=None)
@given(batch_sizes, st.integers(1, 6), st.integers(0, 2**32))
def test_random_failures_lose_nothing(sizes: BatchSizes | None, slots: int, seed: int) -> None:
    engine = HostEngine(sizes, slots, seed=seed, failures=0.2)
    todo = submissions(sizes, seed, 15)
    run(engine, todo, seed)
    for submission in todo:
        assert submission.replies == 1
        if submission.error is None:
            submission.assert_found()
    engine.close()


def test_what_waits_queues_behind_a_batch_that_is_about_to_end_and_no_further() -> None:
    engine = HostEngine(BatchSizes((1, 2, 4, 8)), slots=4)
    former = Former(engine)
    rows = alike(5)
    former.due()
    former.submit(rows[0])
    former.due()
    assert [batch.count for batch in former.started] == [1], "nothing else is there yet"
    former.submit(rows[1])
    former.submit(rows[2])
    assert [batch.count for batch in former.started] == [1]
    former.due()
    assert [batch.count for batch in former.started] == [1, 2]
    former.submit(rows[3])
    former.submit(rows[4])
    former.due()
    assert [batch.count for batch in former.started] == [1, 2], "one runs, one waits, and the next one fills"
    while former.started:
        land(engine, former)
    for row in rows:
        row.assert_found()
    engine.close()


def test_where_several_run_at_once_the_next_one_fills_until_one_of_them_has_ended() -> None:
    engine = HostEngine(BatchSizes((1, 2, 4, 8), lanes=2), slots=4)
    former = Former(engine)
    rows = alike(4)
    for row in rows[:3]:
        former.submit(row)
    former.due()
    former.submit(rows[3])
    assert [batch.count for batch in former.started] == [1, 1]
    land(engine, former)
    assert [batch.count for batch in former.started] == [1, 2]
    while former.started:
        land(engine, former)
    engine.close()


def test_what_is_left_of_a_batch_runs_before_what_came_later() -> None:
    # Four at once cost a fourth of what more of them do each.
    engine = HostEngine(BatchSizes((1, 4, 8), costs=(1, 1, 8)), slots=4)
    former = Former(engine)
    rows, order = alike(13), []
    for row in rows[:8]:
        former.submit(row)
    for row in rows[8:]:
        former.due()
        former.submit(row)
        order += former.started[0].parts
        land(engine, former)
    while former.started:
        order += former.started[0].parts
        land(engine, former)
    assert [part.submission for part in order] == rows
    engine.close()


def test_who_has_failed_alone_is_not_run_again_for_having_failed_with_others_too() -> None:
    engine = HostEngine(BatchSizes((2,)), slots=3)
    former = Former(engine)
    at_fault = Rows([np.full((3, 1), POISON, np.float32)], batched=True)
    (neighbour,) = alike(1)
    former.submit(at_fault)
    former.submit(neighbour)
    shared = [[part.submission for part in batch.parts] for batch in former.started]
    assert shared == [[at_fault], [at_fault, neighbour]]
    while former.started:
        land(engine, former)
    assert [*former.finished] == [at_fault, neighbour]
    assert at_fault.error is not None
    neighbour.assert_found()
    assert engine.batches == 3, "the two, and the neighbour alone"
    engine.close()


def test_batches_fill_across_submissions_while_the_engine_is_busy() -> None:
    engine = HostEngine(BatchSizes((1, 2, 4, 8)), slots=4)
    todo = alike(16, items=2)
    former = Former(engine)
    for submission in todo:
        former.submit(submission)
    # The first started alone, since the engine was idle, and a full one queues behind it.
    assert [batch.count for batch in former.started] == [2, 8]
    while former.started:
        land(engine, former)
    # 2, 8, 8, 8 and, nothing more to come, 6 as 4 and 2.
    assert engine.batches == 6
    assert len(former.finished) == 16
    engine.close()


@pytest.mark.parametrize("exact", [True, False])
def test_a_shape_of_which_fewer_are_taken_at_once_runs_in_more_batches(exact: bool) -> None:
    taken = {1: 8, 4: 2}

    class Slot(HostSlot):
        def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
            rows, width = shapes["row"]
            if rows > taken.get(width, 0):
                raise EngineError("no room")
            super().begin(shapes)

    profiles = tuple(Profile(1, most, (("row", (width,), (width,)),)) for width, most in taken.items())
    engine = HostEngine(BatchSizes((8,) if exact else (1, 2, 8), exact=exact, profiles=profiles))
    engine.slots = [Slot() for _ in engine.slots]
    todo = [Rows([np.full((5, width), number, np.float32)], batched=True) for number, width in enumerate((1, 4, 1, 9))]
    run(engine, todo, seed=0)
    for submission in todo[:3]:
        assert submission.error is None
        submission.assert_found()
    assert "no room" in str(todo[3].error)
    engine.close()
