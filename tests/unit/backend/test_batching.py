"""Requests are checked one by one and laid out over the cheapest runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinstream.batching import Request, check_request, next_run, plan_batches, split, without
from pinstream.errors import InvalidRequest
from pinstream.tensors import Array, BatchSizes, ModelSpec, Profile, TensorSpec

PIXELS = TensorSpec("pixels", "FP32", (3, -1))
TEXT = TensorSpec("text", "BYTES", (1,))
SPEC = ModelSpec((PIXELS,), (TensorSpec("scores", "FP32", (10,)),), BatchSizes((8,), exact=True))


def request(items: int, width: int = 4) -> Request:
    return Request({"pixels": np.zeros((items, 3, width), np.float32)}, items, frozenset({"scores"}))


def test_a_request_that_fits_has_its_items_counted() -> None:
    assert check_request({"pixels": np.zeros((5, 3, 7), np.float32)}, SPEC, 8) == 5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixels": np.zeros((1, 4, 7), np.float32)}, r"'pixels' has shape \[1, 4, 7\]; expected \[batch, 3, -1\]"),
        ({"pixels": np.zeros((3, 7), np.float32)}, r"expected \[batch, 3, -1\]"),
        ({"pixels": np.zeros((), np.float32)}, r"has shape \[\]"),
        ({"pixels": np.zeros((1, 3, 7), np.float64)}, "data type float64; expected FP32"),
        ({"pixels": np.zeros((9, 3, 7), np.float32)}, "has 9 items; it must have 1 to 8"),
        ({"pixels": np.zeros((0, 3, 7), np.float32)}, "has 0 items"),
        ({"image": np.zeros((1, 3, 7), np.float32)}, "has inputs image; the model takes pixels"),
    ],
)
def test_a_wrong_request_is_told_what_was_found_and_what_was_expected(inputs: dict[str, Array], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_request(inputs, SPEC, 8)


def test_inputs_of_unequal_batch_dimensions_are_refused() -> None:
    spec = ModelSpec((PIXELS, TensorSpec("b", "INT64", (1,))), (), BatchSizes((8,), exact=True))
    with pytest.raises(InvalidRequest, match="pixels: 2, b: 3"):
        check_request({"pixels": np.zeros((2, 3, 1), np.float32), "b": np.zeros((3, 1), np.int64)}, spec, 8)


def test_bytes_that_are_no_text_are_refused() -> None:
    spec = ModelSpec((TEXT,), (), BatchSizes((8,), exact=True))
    with pytest.raises(InvalidRequest, match="'text', element 1 is not UTF-8 text"):
        check_request({"text": np.array([[b"a"], [b"\xff"]], object)}, spec, 8)


def test_an_exact_engine_gets_even_parts_over_its_lanes() -> None:
    assert split(8, BatchSizes((32,), exact=True, lanes=2)) == ((4, 4), (4, 4))
    assert split(1, BatchSizes((32,), exact=True, lanes=2)) == ((1, 1),)
    assert split(70, BatchSizes((32,), exact=True)) == ((24, 24), (23, 23), (23, 23))


def test_padding_wins_over_many_small_runs() -> None:
    # The case that a greedy exact split gets wrong: 8+4+2+1 is four runs, one padded 16 is a single one.
    assert split(15, BatchSizes((1, 2, 4, 8, 16))) == ((15, 16),)


def test_measured_costs_decide_between_padding_and_splitting() -> None:
    assert split(5, BatchSizes((4, 8), costs=(1.0, 1.5))) == ((5, 8),)
    assert split(5, BatchSizes((1, 4, 8), costs=(0.5, 1.0, 3.0))) == ((4, 4), (1, 1))


buckets = st.sets(st.integers(1, 40), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))


@given(st.integers(1, 200), buckets)
def test_a_split_holds_every_item_once_and_costs_no_more_than_any_single_bucket(
    total: int, sizes: tuple[int, ...]
) -> None:
    runs = split(total, BatchSizes(sizes))
    assert sum(count for count, _ in runs) == total
    assert all(0 < count <= size and size in sizes for count, size in runs)
    cost = sum(size + 2.0 for _, size in runs)
    assert all(cost <= -(-total // size) * (size + 2.0) + 1e-9 for size in sizes)


@given(st.lists(st.integers(1, 9), max_size=12), buckets, st.booleans())
def test_every_item_of_every_request_lies_in_exactly_one_place(
    items: list[int], sizes: tuple[int, ...], exact: bool
) -> None:
    requests = [request(n, width=1 + i % 2) for i, n in enumerate(items)]
    batches = plan_batches(requests, BatchSizes(sizes, exact=exact, lanes=2))
    seen = [(p.request, p.start + i) for b in batches for p in b.pieces for i in range(p.count)]
    assert sorted(seen) == [(r, i) for r, n in enumerate(items) for i in range(n)]
    for batch in batches:
        offsets = [p.offset + i for p in batch.pieces for i in range(p.count)]
        assert offsets == list(range(batch.count))
        assert batch.count <= batch.size
        assert len({requests[p.request].inputs["pixels"].shape[1:] for p in batch.pieces}) == 1


def test_a_request_of_a_shape_of_which_fewer_run_at_once_is_split() -> None:
    profiles = (
        Profile(1, 8, (("pixels", (3, 1), (3, 4)),)),
        Profile(1, 2, (("pixels", (3, 5), (3, 9)),)),
    )
    for sizes in (BatchSizes((8,), exact=True, profiles=profiles), BatchSizes((1, 2, 8), profiles=profiles)):
        assert [b.count for b in plan_batches([request(6, width=4)], sizes)] == [6]
        assert max(b.size for b in plan_batches([request(6, width=9)], sizes)) == 2
        both = plan_batches([request(6, width=4), request(3, width=9)], sizes)
        assert sorted(b.count for b in both) == [1, 2, 6]


@pytest.mark.parametrize(
    ("sizes", "gone", "places", "size"),
    [
        (BatchSizes((1, 4, 8)), {1}, [(0, 0, 2), (2, 2, 1)], 4),
        (BatchSizes((8,), exact=True), {0}, [(1, 0, 3), (2, 3, 1)], 4),
        (BatchSizes((1, 4, 8)), {0, 1, 2}, [], 0),
    ],
)
def test_a_batch_without_some_of_its_requests_moves_together(
    sizes: BatchSizes, gone: set[int], places: list[tuple[int, int, int]], size: int
) -> None:
    (batch,) = plan_batches([request(items) for items in (2, 3, 1)], sizes)
    left = without(batch, gone, sizes)
    assert [(piece.request, piece.offset, piece.count) for piece in left.pieces] == places
    assert (left.count, left.size) == (sum(count for *_, count in places), size)


def test_without_a_batch_dimension_every_request_is_a_run() -> None:
    batches = plan_batches([request(1), request(1)], None)
    assert [[p.request for p in batch.pieces] for batch in batches] == [[0], [1]]


@pytest.mark.parametrize(
    ("waiting", "runs"),
    [(1, 1), (3, 3), (4, 4), (6, 4), (7, 7), (12, 8), (17, 16), (28, 16), (31, 31), (32, 32), (40, 32)],
)
def test_of_items_that_wait_so_many_run_first_that_most_are_done_a_second(waiting: int, runs: int) -> None:
    # Milliseconds of YOLOX-m on an H200: 4 of 6 are 2,139 a second, and 6 padded to 8 are 1,875.
    sizes = BatchSizes((1, 4, 8, 16, 32), costs=(0.93, 1.87, 3.2, 5.75, 10.82))
    assert next_run(waiting, sizes) == runs


def test_an_exact_engine_runs_what_waits_as_it_would_be_split() -> None:
    assert next_run(7, BatchSizes((8,), exact=True)) == 7
    assert next_run(20, BatchSizes((8,), exact=True)) == 7


def test_a_measured_best_size_bounds_the_runs_of_an_exact_engine() -> None:
    assert split(5, BatchSizes((32,), exact=True, best=2)) == ((2, 2), (2, 2), (1, 1))
    assert BatchSizes((32,), best=2).largest == 32


def cheapest(total: int, prices: dict[int, float]) -> float:
    """The least price of buckets that hold `total`, by trying every number of every bucket."""
    numbers = [range(-(-total // size) + 1) for size in prices]
    return min(
        sum(n * price for n, price in zip(chosen, prices.values(), strict=True))
        for chosen in itertools.product(*numbers)
        if sum(n * size for n, size in zip(chosen, prices, strict=True)) >= total
    )


prices = st.dictionaries(st.integers(1, 12), st.floats(0.1, 20), min_size=1, max_size=3)


@given(st.integers(1, 24), prices)
@settings(deadline=None)
def test_no_other_split_costs_less(total: int, price: dict[int, float]) -> None:
    sizes = tuple(sorted(price))
    runs = split(total, BatchSizes(sizes, costs=tuple(price[size] for size in sizes)))
    assert sum(count for count, _ in runs) == total
    assert sum(price[size] for _, size in runs) == pytest.approx(cheapest(total, price))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), st.integers(0, 40))
def test_an_exact_engine_runs_as_few_and_as_even_batches_as_it_can(
    total: int, largest: int, lanes: int, best: int
) -> None:
    sizes = BatchSizes((largest,), exact=True, lanes=lanes, best=min(best, largest))
    counts = [count for count, size in split(total, sizes) if count == size]
    assert sum(counts) == total, "an exact engine pads nothing"
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= (sizes.best or largest)
    fewest = -(-total // (sizes.best or largest))
    assert len(counts) == max(fewest, min(lanes, total))
