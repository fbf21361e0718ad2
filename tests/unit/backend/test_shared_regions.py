"""Regions of shared memory that the engine's process reads come and go, and no request suffers from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.loop import Loop
from pinstream.references import References
from pinstream.shared.client import SharedEngine
from pinstream.tensors import Array, TensorSpec
from tests.places import held_with, name_of_region, numbers, places, read
from tests.served_engine import instance, served
from tests.server.test_leftovers import wait_until
from tests.unit.backend.test_shared_pins import PinningEngine
from yolox_steps.places import DIRECTORY, HEADER, Places

ROW = TensorSpec("x", "FP32", (100,))


def doubled(shared: SharedEngine, *rows: Array) -> None:
    requests = [Request({"row": row}, len(row), frozenset({"doubled"})) for row in rows]
    for row, answer in zip(rows, Loop(shared).run(requests), strict=True):
        assert answer.error is None, answer.error
        np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), row * 2)


@contextlib.contextmanager
def sharing() -> Iterator[tuple[PinningEngine, SharedEngine]]:
    engine = PinningEngine()
    with served(engine) as address:
        shared = instance(address)
        yield engine, shared
        shared.close()
    assert engine.unpinned_early == 0
    assert engine.pinned == {}, "the last instance has gone"


def filled(made: Places, readers: References, items: int, seed: int) -> Array:
    return read(readers, held_with(made, numbers(items, seed, ROW)).references)


def test_it_reads_where_they_lie_and_what_has_come_since() -> None:
    readers = References([ROW])
    with sharing() as (_, shared), places(tensor=ROW) as made:
        rows = filled(made, readers, 4, 1)
        doubled(shared, rows)
        assert shared.place(rows) == (0, HEADER)
        assert shared.place(rows[1:3]) == (0, HEADER + ROW.item_bytes)
        doubled(shared, rows, rows[1:3])
        more = filled(made, readers, 8, 2)
        doubled(shared, more, rows)
        assert shared.place(more) == (0, HEADER + 4 * ROW.item_bytes)


def test_what_goes_while_a_batch_is_made_stays_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """The parts of one batch lie in two regions, and the first has no name any more as the second is seen first."""
    readers, name = References([ROW]), name_of_region()
    with sharing() as (_, shared), places(name, ROW) as old, places(tensor=ROW) as new:
        first = filled(old, readers, 2, 1)
        # Until no slot's memory grows any more: then all mappings are looked at, and one without a name is not found.
        for _ in range(2 * len(shared.slots)):
            doubled(shared, first, first)
        (DIRECTORY / name).unlink()
        assert shared.place(first) is not None
        doubled(shared, first, filled(new, readers, 2, 2))
        doubled(shared, filled(new, readers, 2, 3))
    # What fails is sent again, a request at a time.
    assert not caplog.records


def test_a_region_that_has_gone_is_given_back() -> None:
    """By the engine's process, which is this one too: each side maps a region once, and who fills it once more."""
    readers = References([ROW])
    with sharing() as (_, shared):
        for seed in range(8):
            with places(tensor=ROW) as made:
                for _ in range(2 * len(shared.slots)):
                    doubled(shared, filled(made, readers, 2, seed))
            del made
        wait_until(lambda: mapped() <= 4, 10)


def mapped() -> int:
    """How often this process has regions mapped."""
    return Path("/proc/self/maps").read_text().count("_places")
