"""Which of several servers is asked next."""

import os
import signal
from itertools import islice

import pytest

from pinstream_client import Retry
from pinstream_client.endpoints import FIRST_ABSENCE_S, LONGEST_ABSENCE_S, Endpoints


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_servers_are_taken_in_turn() -> None:
    endpoints = Endpoints(3)
    assert [endpoints.pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_one_that_failed_is_left_out_and_comes_back_for_one_try() -> None:
    clock = Clock()
    endpoints = Endpoints(3, clock)
    endpoints.failed(1)
    assert [endpoints.pick() for _ in range(4)] == [0, 2, 0, 2]
    clock.now += FIRST_ABSENCE_S
    picked = [endpoints.pick() for _ in range(6)]
    assert picked.count(1) == 1  # nobody else goes there until it is known what came of it
    endpoints.answered(1)
    assert sorted(endpoints.pick() for _ in range(3)) == [0, 1, 2]


def test_absence_doubles_up_to_its_limit_and_an_answer_ends_it() -> None:
    clock = Clock()
    endpoints = Endpoints(2, clock)
    for failures in range(1, 12):
        endpoints.failed(0)
        absence = min(LONGEST_ABSENCE_S, FIRST_ABSENCE_S * 2 ** (failures - 1))
        clock.now += absence - 0.01
        assert {endpoints.pick() for _ in range(3)} == {1}
        clock.now += 0.02
        assert 0 in {endpoints.pick() for _ in range(2)}
    endpoints.answered(0)
    endpoints.failed(0)
    clock.now += FIRST_ABSENCE_S
    assert 0 in {endpoints.pick() for _ in range(2)}


def test_calls_that_fail_together_are_one_failure() -> None:
    clock = Clock()
    endpoints = Endpoints(2, clock)
    for _ in range(32):
        endpoints.failed(0)
        clock.now += 0.001
    clock.now += FIRST_ABSENCE_S
    assert 0 in {endpoints.pick() for _ in range(2)}


def test_those_tried_are_passed_over_and_the_first_to_return_is_better_than_none() -> None:
    clock = Clock()
    endpoints = Endpoints(3, clock)
    assert endpoints.pick({0, 1}) == 2
    for server in (2, 0, 1):
        endpoints.failed(server)
        clock.now += 0.1
    assert endpoints.pick() == 2
    assert endpoints.pick({2}) == 0
    assert endpoints.pick({0, 1, 2}) in (0, 1, 2)


def test_child_forked_while_a_server_was_picked_picks_one() -> None:
    endpoints = Endpoints(2)
    with endpoints._lock:  # as another thread of the parent would hold it
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            os._exit(0 if endpoints.pick() in (0, 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_single_server_is_always_asked() -> None:
    endpoints = Endpoints(1)
    endpoints.failed(0)
    assert endpoints.pick({0}) == 0


def test_pauses_are_drawn_below_a_bound_that_doubles() -> None:
    retry = Retry(attempts=6, first=0.1, longest=0.5)
    drawn = [list(islice(retry.pauses(), 5)) for _ in range(300)]
    for number, bound in enumerate((0.1, 0.2, 0.4, 0.5, 0.5)):
        pauses = [one[number] for one in drawn]
        assert 0 <= min(pauses) < 0.1 * bound
        assert 0.9 * bound < max(pauses) <= bound


def test_a_server_without_room_is_asked_beyond_the_rounds_for_one_that_is_not_there() -> None:
    retry = Retry(attempts=3)
    assert [retry.goes_on(rounds, busy=False) for rounds in (1, 2, 3, 4)] == [True, True, False, False]
    assert all(retry.goes_on(rounds, busy=True) for rounds in (1, 3, 100))
    assert not Retry(attempts=1).goes_on(1, busy=True)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": -1.0}, {"first": 3.0, "longest": 1.0}])
def test_retry_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected attempts"):
        Retry(**wrong)  # type: ignore[arg-type]
