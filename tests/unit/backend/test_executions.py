"""Batches that an instance works on at once: started by its caller, finished by others, never more than there are."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.executions import Executions, Finish
from pinstream.loop import Loop
from pinstream.tensors import BatchSizes
from tests.host_engine import HostEngine

PATIENCE_S = 5.0


SIZES = BatchSizes((1, 2, 4))


def loops(count: int) -> list[Loop]:
    return [Loop(HostEngine(SIZES, seed=seed, delay_s=0.003)) for seed in range(count)]


class Work:
    """Starts batches that are finished when they are told to be."""

    def __init__(self) -> None:
        self.loops: list[Loop] = []
        self.starters: list[int] = []
        self.finishers: SimpleQueue[int] = SimpleQueue()
        self.may_finish = threading.Semaphore(0)

    def start(self, loop: Loop) -> Finish:
        self.loops.append(loop)
        self.starters.append(threading.get_ident())

        def finish() -> None:
            assert self.may_finish.acquire(timeout=PATIENCE_S)
            self.finishers.put(threading.get_ident())

        return finish


def test_batches_are_started_by_the_caller_and_finished_at_the_same_time_by_others() -> None:
    work, all_ = Work(), loops(3)
    executions = Executions(all_)
    for _ in range(2):
        executions.run(work.start)
    # Both are under way, and neither has ended.
    assert work.loops == all_[:2]
    assert set(work.starters) == {threading.get_ident()}
    work.may_finish.release(2)
    assert len({work.finishers.get(timeout=PATIENCE_S) for _ in range(2)} - {threading.get_ident()}) == 2
    executions.close()


def test_the_caller_is_kept_as_long_as_no_other_batch_could_be_started() -> None:
    work = Work()
    executions = Executions(loops(2))
    executions.run(work.start)
    caller = threading.Thread(target=executions.run, args=(work.start,))
    caller.start()
    caller.join(0.2)
    assert caller.is_alive()
    assert len(work.loops) == 2  # what it was handed is on its way all the same
    work.may_finish.release()
    caller.join(PATIENCE_S)
    assert not caller.is_alive()
    work.may_finish.release()
    executions.close()


def test_a_loop_is_free_again_after_its_batch() -> None:
    work, all_ = Work(), loops(2)
    executions = Executions(all_)
    work.may_finish.release(10)
    for _ in range(10):
        executions.run(work.start)
    executions.close()
    assert set(work.loops) == set(all_)
    assert work.finishers.qsize() == 10


def test_a_loop_is_idle_while_no_batch_is_under_way_and_is_then_the_next_one() -> None:
    work, all_ = Work(), loops(2)
    executions = Executions(all_)
    assert executions.idle() is all_[0]
    executions.run(work.start)
    assert executions.idle() is None
    work.may_finish.release()
    work.finishers.get(timeout=PATIENCE_S)
    until = time.monotonic() + PATIENCE_S
    while executions.idle() is None and time.monotonic() < until:
        time.sleep(0.001)
    assert executions.idle() is all_[1]
    executions.close()


def test_what_could_not_be_started_leaves_its_loop_free() -> None:
    def fails(loop: Loop) -> Finish:
        raise RuntimeError("no")

    work, all_ = Work(), loops(2)
    executions = Executions(all_)
    with pytest.raises(RuntimeError):
        executions.run(fails)
    work.may_finish.release(2)
    for _ in range(2):
        executions.run(work.start)
    executions.close()
    assert work.finishers.qsize() == 2


def test_every_request_gets_its_own_answer_once() -> None:
    executions = Executions(loops(3))
    answers: SimpleQueue[tuple[int, float]] = SimpleQueue()

    def batch(first: int) -> list[Request]:
        # Up to three requests, of more items than go into a batch.
        rows = [np.full((1 + number % 6, 2), number, np.float32) for number in range(first, first + 1 + first % 3)]
        return [Request({"row": row}, len(row), frozenset({"doubled"})) for row in rows]

    def start(loop: Loop, requests: list[Request]) -> Finish:
        run = loop.start(requests)

        def finish() -> None:
            for request, answer in zip(requests, loop.finish(run), strict=True):
                rows, doubled = np.asarray(request.inputs["row"]), np.asarray(answer.outputs["doubled"])
                assert doubled.shape == rows.shape
                (value,) = np.unique(doubled)
                answers.put((int(rows[0, 0]), float(value)))

        return finish

    for first in range(0, 300, 3):
        requests = batch(first)
        executions.run(lambda loop, requests=requests: start(loop, requests))  # type: ignore[misc]
    executions.close()
    got = [answers.get() for _ in range(answers.qsize())]
    assert sorted(got) == [(n, 2.0 * n) for first in range(0, 300, 3) for n in range(first, first + 1 + first % 3)]


def test_a_loop_whose_finishing_failed_takes_the_next_batch() -> None:
    def fails() -> None:
        raise MemoryError

    executions = Executions(loops(1))
    executions.run(lambda loop: fails)
    work = Work()
    work.may_finish.release()
    executions.run(work.start)
    executions.close()
    assert work.finishers.qsize() == 1


def test_a_loop_holds_nothing_of_a_batch_that_is_done() -> None:
    class Requests:
        """What a batch holds of Triton's memory."""

    def start(held: Requests) -> Callable[[Loop], Finish]:
        def finish() -> None:
            assert held

        return lambda loop: finish

    held = Requests()
    gone = weakref.ref(held)
    executions = Executions(loops(1))
    executions.run(start(held))
    del held
    gc.collect()
    assert gone() is None
    executions.close()


def test_closing_waits_for_what_is_under_way() -> None:
    work = Work()
    executions = Executions(loops(2))
    executions.run(work.start)
    closing = threading.Thread(target=executions.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    work.may_finish.release()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
