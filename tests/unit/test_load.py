"""What `make load` holds a service to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.load import missed

WELL: dict[str, Any] = {
    "goodput_of_peak": 0.91,
    "idle_p50_ms": 18.9,
    "milliseconds": {"refused": {"p50": 1.0, "p100": 3185.7}},
    "computed_of_answered": 1.0,
    "back_to_idle_s": 3.1,
}


def test_a_service_that_holds_all_misses_nothing() -> None:
    assert missed(WELL) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"goodput_of_peak": 0.5}, "goodput_of_peak"),
        ({"milliseconds": {"refused": {"p50": 1.0, "p100": 9000.0}}}, "refusals within"),
        ({"milliseconds": {"refused": {"p50": 3016.5, "p100": 3185.7}}}, "half the refusals"),
        ({"computed_of_answered": 1.3}, "computed_of_answered"),
        ({"back_to_idle_s": float("inf")}, "back to idle"),
    ],
)
def test_what_is_missed_is_named(change: dict[str, Any], named: str) -> None:
    (text,) = missed({**WELL, **change})
    assert named in text
