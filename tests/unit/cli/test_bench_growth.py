"""Whether more load gives less: falls beyond the spread, saturation, p50 past it, and what is said of them."""

from __future__ import annotations

import pytest

from pinstream_cli.benchmark.growth import BATCH, CONCURRENCY, Fall, Growth, growth
from pinstream_cli.benchmark.report import Row


def row(concurrency: int, rate: float, spread: float = 0.02, batch: int = 1, slower: float = 1.0) -> Row:
    p50 = concurrency * batch / rate * 1e3 * slower
    return Row("gRPC", batch, concurrency, rate, p50, 2 * p50, rate / 3000, spread, {}, 0.0)


def by_concurrency(*rows: Row) -> Growth:
    return growth(rows, [row.concurrency for row in rows])


def test_a_fall_is_told_with_where_from_and_how_much() -> None:
    found = by_concurrency(row(1, 300), row(8, 1500), row(64, 2800), row(128, 2100), row(256, 2790))
    assert found.falls == (Fall(64, 128, 0.25, tolerance=0.0175),)
    assert "falls by 25.0% from concurrency 64 to 128" in found.sentences(CONCURRENCY)[0]
    assert found.as_json()["falls"] == [{"best": 64, "worse": 128, "share": 0.25, "tolerance": 0.018}]


def test_what_lies_within_the_spread_is_no_fall() -> None:
    found = by_concurrency(row(64, 2800, 0.05), row(128, 2750, 0.05), row(256, 2790, 0.01))
    assert found.falls == ()
    assert found.sentences(CONCURRENCY)[0] == "From concurrency 64 to 256 throughput never falls beyond the spread."


def test_a_slow_decline_is_held_against_the_best_and_not_against_the_neighbour() -> None:
    (fall,) = by_concurrency(row(8, 1000, 0.06), row(16, 960, 0.06), row(32, 920, 0.06)).falls
    assert (fall.best, fall.worse, round(fall.share, 3)) == (8, 32, 0.08)


def test_how_much_a_large_spread_hides_is_told() -> None:
    found = by_concurrency(row(8, 1000, 0.3), row(16, 960, 0.3), row(32, 850, 0.1))
    assert found.falls == ()
    assert [(fall.best, fall.worse) for fall in found.hidden] == [(8, 32)], "4 % at 16 are not worth a word"
    assert found.sentences(CONCURRENCY)[:2] == [
        "From concurrency 8 to 32 throughput never falls beyond the spread.",
        "Within the spread it is less by 15.0% from concurrency 8 to 32 (up to 19.2% may be chance).",
    ]
    assert found.as_json()["hidden"] == [{"best": 8, "worse": 32, "share": 0.15, "tolerance": 0.193}]


def test_saturation_is_the_first_that_gives_nearly_all() -> None:
    rows = [row(1, 300), row(16, 2700), row(64, 2790), row(256, 2800)]
    found = by_concurrency(*rows)
    assert found.saturated_at == 16
    assert "Saturated from concurrency 16 on; there p50 grows linearly" in found.sentences(CONCURRENCY)[1]
    assert by_concurrency().saturated_at == 0
    assert by_concurrency().sentences(CONCURRENCY) == by_concurrency(rows[0]).sentences(CONCURRENCY) == []


def test_p50_that_grows_faster_than_load_is_told() -> None:
    found = by_concurrency(row(1, 300), row(16, 2800), row(64, 2800), row(256, 2800, slower=1.3))
    assert found.p50_within == pytest.approx(0.3)
    assert "p50 does not grow linearly" in found.sentences(CONCURRENCY)[1]
    assert "30.0% apart" in found.sentences(CONCURRENCY)[1]


def test_larger_requests_fall_by_their_size_and_count_by_their_images() -> None:
    rows = [row(64, 2800), row(16, 2900, batch=4), row(2, 2200, batch=32)]
    found = growth(rows, [1, 4, 32])
    first, second = found.sentences(BATCH)
    assert first == "From 1 to 32 images a request throughput falls by 24.1% from 4 to 32 images a request."
    assert second.startswith("Saturated from 1 images a request on; there p50 does not grow linearly")
    assert growth(rows[:2], [1, 4]).p50_within < 0.05


def test_where_only_the_most_load_saturates_nothing_is_known_of_p50() -> None:
    assert "was not measured" in by_concurrency(row(1, 300), row(4, 1200)).sentences(CONCURRENCY)[1]
