"""One sleeps for most of what something usually takes, looks for it when it is due, and learns as that changes."""

from __future__ import annotations

import pytest

from pinstream.pace import MARGIN_S, MARGIN_SHARE, Looking, Pace


@pytest.mark.parametrize(
    ("looking", "alone", "among_others"),
    [(Looking.NEVER, False, False), (Looking.ALONE, True, False), (Looking.ALWAYS, True, True)],
)
def test_who_is_alone_may_look_all_the_time(looking: Looking, alone: bool, among_others: bool) -> None:
    assert looking.now(alone=True) is alone
    assert looking.now(alone=False) is among_others


def test_nothing_is_known_of_what_was_never_done() -> None:
    assert Pace().pause(8, 0.0) is None


def test_most_of_the_usual_time_is_slept_and_then_nothing() -> None:
    pace = Pace()
    pace.took(8, 0.010)
    assert pace.pause(8, 0.0) == pytest.approx(0.010 - MARGIN_S)
    assert pace.pause(8, 0.004) == pytest.approx(0.006 - MARGIN_S)
    assert pace.pause(8, 0.010) == 0.0
    assert pace.pause(8, 0.010 + MARGIN_S / 2) == 0.0


def test_what_is_late_costs_no_core() -> None:
    pace = Pace()
    pace.took(8, 0.010)
    assert pace.pause(8, 0.010 + 2 * MARGIN_S) is None


def test_batch_sizes_are_told_apart() -> None:
    pace = Pace()
    pace.took(1, 0.001)
    pace.took(32, 0.011)
    assert pace.pause(1, 0.0) == pytest.approx(0.001 * (1 - MARGIN_SHARE))
    assert pace.pause(32, 0.0) == pytest.approx(0.011 - MARGIN_S)


def test_looking_takes_no_more_than_a_share_of_something_short() -> None:
    pace = Pace()
    pace.took(1, 0.0001)
    assert pace.pause(1, 0.0) == pytest.approx(0.0001 * (1 - MARGIN_SHARE))
    assert pace.pause(1, 0.0001 * (1 + 2 * MARGIN_SHARE)) is None


def test_what_changes_is_learned() -> None:
    pace = Pace()
    pace.took(1, 0.010)
    for _ in range(60):
        pace.took(1, 0.002)
    assert pace.pause(1, 0.0) == pytest.approx(0.002 - MARGIN_S, rel=0.01)


def test_waking_up_late_does_not_lengthen_the_next_pause() -> None:
    pace = Pace()
    pace.took(1, 0.001)
    began = pace.pause(1, 0.0)
    for _ in range(100):
        pause = pace.pause(1, 0.0)
        assert pause is not None
        seconds = max(0.001, pause + 0.0005)  # half a millisecond late
        pace.took(1, seconds, overslept=pause > 0)
        assert pause <= began  # type: ignore[operator]


def test_one_that_takes_longer_again_is_learned_after_oversleeping() -> None:
    pace = Pace()
    pace.took(1, 0.001, overslept=True)
    for _ in range(60):
        pace.took(1, 0.004)
    assert pace.pause(1, 0.0) == pytest.approx(0.004 - MARGIN_S, rel=0.01)


def test_oversleeping_something_short_takes_no_more_than_the_margin_off() -> None:
    pace = Pace()
    pace.took(1, 0.0004)
    pace.took(1, 0.0006, overslept=True)
    assert pace.pause(1, 0.0) == pytest.approx(0.0004 * (1 - MARGIN_SHARE) ** 2)
