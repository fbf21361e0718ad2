"""Whether more load gives less: falls beyond the spread, saturation, and what is said of them."""

from __future__ import annotations

from pinstream_cli.benchmark.growth import Fall, falls, saturation, sentences
from pinstream_cli.benchmark.report import Row


def row(concurrency: int, rate: float, spread: float = 0.02) -> Row:
    p50 = concurrency / rate * 1e3
    return Row("gRPC", 1, concurrency, rate, p50, 2 * p50, rate / 3000, spread, {}, 0.0)


def test_a_fall_is_told_with_where_from_and_how_much() -> None:
    rows = [row(1, 300), row(8, 1500), row(64, 2800), row(128, 2100), row(256, 2790)]
    assert falls(rows) == [Fall(64, 128, 0.25)]
    assert "falls by 25.0% from concurrency 64 to 128" in sentences(rows)[0]


def test_what_lies_within_the_spread_is_no_fall() -> None:
    rows = [row(64, 2800, 0.05), row(128, 2750, 0.05), row(256, 2790, 0.01)]
    assert falls(rows) == []
    assert sentences(rows)[0] == "From concurrency 64 to 256 throughput never falls beyond the spread."


def test_a_slow_decline_is_held_against_the_best_and_not_against_the_neighbour() -> None:
    rows = [row(8, 1000, 0.06), row(16, 960, 0.06), row(32, 920, 0.06)]
    assert falls(rows) == [Fall(8, 32, 0.08)]


def test_saturation_is_the_first_that_gives_nearly_all() -> None:
    rows = [row(1, 300), row(16, 2700), row(64, 2790), row(256, 2800)]
    assert saturation(rows) == 16
    assert "Saturated from concurrency 16 on" in sentences(rows)[1]
    assert saturation([]) == 0
    assert sentences(rows[:1]) == []
