"""What `make load` holds a service to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.load import missed

WELL: dict[str, Any] = {
    "offered_requests_per_s": 100.9,
    "sent_requests_per_s": 100.6,
    "goodput_of_peak": 0.91,
    "idle_p50_ms": 18.9,
    "milliseconds": {"refused": {"p50": 1.0, "p90": 4.1, "p100": 3185.7}},
    "computed_of_answered": 1.0,
    "back_to_idle_s": 3.1,
    "by_status": {"DEADLINE_EXCEEDED": 5268, "OK": 21223, "UNAVAILABLE": 19893},
    "gave_up": 9288,
    "memory_mib": [556, 649, 665, 681, 688, 700, 709, 712, 714, 720],
}


def test_a_service_that_holds_all_misses_nothing() -> None:
    assert missed(WELL) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sent_requests_per_s": 95.0}, "sent_requests_per_s"),
        ({"goodput_of_peak": 0.5}, "goodput_of_peak"),
        ({"milliseconds": {"refused": {"p50": 1.0, "p90": 2.0, "p100": 9000.0}}}, "refusals within"),
        ({"milliseconds": {"refused": {"p50": 1.0, "p90": 3016.5, "p100": 3185.7}}}, "nine in ten refusals"),
        ({"computed_of_answered": 1.3}, "computed_of_answered"),
        ({"back_to_idle_s": float("inf")}, "back to 1.5 x idle"),
        ({"by_status": {"INTERNAL": 1, "OK": 21223}}, "no status but DEADLINE_EXCEEDED, OK, UNAVAILABLE"),
        ({"gave_up": 5267}, "no more DEADLINE_EXCEEDED"),
        ({"memory_mib": [*range(560, 760, 10)]}, "memory_mib at the end"),
    ],
)
def test_what_is_missed_is_named(change: dict[str, Any], named: str) -> None:
    (text,) = missed({**WELL, **change})
    assert named in text
