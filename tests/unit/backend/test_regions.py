"""An array in a mapped file of /dev/shm is found there, and any other is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pinstream.regions import KnownRegions, SharedRegions, address_of
from pinstream.tensors import Array
from tests.shm_region import mapped, shm_region

SIZE = 1 << 16


@pytest.fixture
def region() -> Iterator[Path]:
    with shm_region(SIZE) as path:
        yield path


@pytest.fixture
def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream.regions.READ_EVERY_S", 0.0)


def span(array: Array) -> tuple[int, int]:
    return address_of(array), array.nbytes


def test_an_array_in_a_region_is_found_with_its_offset(region: Path) -> None:
    array = np.frombuffer(mapped(region, SIZE), np.uint8)[123:456]
    place = SharedRegions().place(*span(array))
    assert place is not None
    assert (place.path, place.offset, place.size) == (str(region), 123, SIZE)


def test_an_array_elsewhere_is_not() -> None:
    assert SharedRegions().place(*span(np.zeros(10, np.uint8))) is None


@pytest.mark.usefixtures("look_every_time")
def test_a_region_mapped_later_is_found_too(region: Path) -> None:
    regions = SharedRegions()
    assert regions.place(*span(np.zeros(10, np.uint8))) is None
    assert regions.place(*span(np.frombuffer(mapped(region, SIZE), np.uint8))) is not None


@pytest.mark.usefixtures("look_every_time")
def test_a_region_that_has_grown_shows_its_new_size(region: Path) -> None:
    regions = SharedRegions()
    first = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert regions.place(*span(first)) is not None
    os.truncate(region, 2 * SIZE)
    grown = np.frombuffer(mapped(region, 2 * SIZE), np.uint8)
    place = regions.place(*span(grown[SIZE:]))
    assert place is not None
    assert (place.offset, place.size) == (SIZE, 2 * SIZE)


def test_a_deleted_region_cannot_be_opened_by_others(region: Path) -> None:
    array = np.frombuffer(mapped(region, SIZE), np.uint8)
    region.unlink()
    assert SharedRegions().place(*span(array)) is None


@pytest.mark.usefixtures("look_every_time")
def test_a_region_is_shared_once_and_again_only_when_much_larger(region: Path) -> None:
    told: list[tuple[str, int]] = []

    def share(path: str, size: int) -> int:
        told.append((path, size))
        return len(told)

    known = KnownRegions(share)
    first = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert known.find(*span(first[10:20])) == (1, 10)
    assert known.find(*span(first[20:30])) == (1, 20)
    os.truncate(region, SIZE + SIZE // 4)
    a_little_larger = np.frombuffer(mapped(region, SIZE + SIZE // 4), np.uint8)
    assert known.find(*span(a_little_larger[SIZE:])) is None
    assert known.find(*span(a_little_larger[:SIZE])) == (1, 0)
    os.truncate(region, 2 * SIZE)
    grown = np.frombuffer(mapped(region, 2 * SIZE), np.uint8)
    assert known.find(*span(grown[SIZE:])) == (2, SIZE)
    known.forget()
    assert known.find(*span(grown[SIZE:])) == (3, SIZE)
    assert told == [(str(region), SIZE), (str(region), 2 * SIZE), (str(region), 2 * SIZE)]


@pytest.mark.usefixtures("look_every_time")
def test_all_who_share_a_region_do_so_at_the_same_size(region: Path) -> None:
    """So that what has mapped and page-locked it for one need not do so for the next."""
    told: list[int] = []

    def share(path: str, size: int) -> int:
        told.append(size)
        return len(told)

    one, other = KnownRegions(share), KnownRegions(share)
    assert one.find(*span(np.frombuffer(mapped(region, SIZE), np.uint8)[:10])) == (1, 0)
    os.truncate(region, SIZE + SIZE // 4)
    a_little_larger = np.frombuffer(mapped(region, SIZE + SIZE // 4), np.uint8)
    assert other.find(*span(a_little_larger[:10])) == (2, 0)
    assert other.find(*span(a_little_larger[SIZE:])) is None
    os.truncate(region, 2 * SIZE)
    grown = np.frombuffer(mapped(region, 2 * SIZE), np.uint8)
    assert one.find(*span(grown[SIZE:])) == (3, SIZE)
    # Who has not looked since it was smaller shares it as large as it has been shared.
    third = KnownRegions(share)
    third._regions._mappings = [replace(m, size=SIZE) for m in other._regions._mappings]
    third._regions._starts = other._regions._starts
    assert third.find(*span(a_little_larger[:10])) == (4, 0)
    assert told == [SIZE, SIZE, 2 * SIZE, 2 * SIZE]


def test_what_lies_elsewhere_is_shared_with_nobody() -> None:
    def share(path: str, size: int) -> int:
        raise AssertionError

    assert KnownRegions(share).find(*span(np.zeros(10, np.uint8))) is None
