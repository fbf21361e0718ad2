"""An array in a mapped file of /dev/shm is found there, and any other is not."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pinstream import growing
from pinstream.growing import GrowingFile
from pinstream.regions import KnownRegions, SharedRegions, address_of
from pinstream.tensors import Array
from tests.shm_region import mapped, shm_region

SIZE = 1 << 16


@pytest.fixture
def region() -> Iterator[Path]:
    with shm_region(SIZE) as path:
        yield path


def span(array: Array) -> tuple[int, int]:
    return address_of(array), array.nbytes


def test_an_array_in_a_region_is_found_with_its_offset(region: Path) -> None:
    array = np.frombuffer(mapped(region, SIZE), np.uint8)[123:456]
    place = SharedRegions().place(*span(array))
    assert place is not None
    assert (place.path, place.inode, place.offset) == (str(region), region.stat().st_ino, 123)


def test_an_array_elsewhere_is_not() -> None:
    assert SharedRegions().place(*span(np.zeros(10, np.uint8))) is None


def test_a_region_mapped_later_is_found_at_once(region: Path) -> None:
    regions = SharedRegions()
    for _ in range(3):
        assert regions.place(*span(np.frombuffer(mapped(region, SIZE), np.uint8))) is not None


def test_after_a_look_in_vain_there_is_a_pause(region: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream.regions.PAUSE_S", 0.2)
    regions = SharedRegions()
    assert regions.place(*span(np.zeros(10, np.uint8))) is None
    array = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert regions.place(*span(array)) is None
    time.sleep(0.25)
    assert regions.place(*span(array)) is not None


def test_a_mapping_of_our_own_is_none_of_tritons(region: Path) -> None:
    growing = GrowingFile(os.open(region, os.O_RDWR))
    growing.grow()
    assert SharedRegions().place(*span(growing.data[:10])) is None
    assert SharedRegions().place(*span(np.frombuffer(mapped(region, SIZE), np.uint8))) is not None


def test_a_deleted_region_cannot_be_opened_by_others(region: Path) -> None:
    array = np.frombuffer(mapped(region, SIZE), np.uint8)
    region.unlink()
    assert SharedRegions().place(*span(array)) is None


class Told:
    """What somebody was told of regions: a number for each, and the size that its file had then."""

    def __init__(self, unshare: Callable[[int], None] = lambda number: None) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.known = KnownRegions(self._share, unshare)

    def _share(self, path: str, number: int | None) -> int:
        number = number or 1 + max((other for other, _ in self.sizes), default=0)
        self.sizes.append((number, os.stat(path).st_size))
        return number


def test_what_is_about_to_end_is_found_no_more(region: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ending takes its time, in which other threads go on looking, and what they see then does not stay known."""
    regions = SharedRegions()
    with region.open("r+b") as file:
        memory = growing.mapped(file.fileno(), SIZE)
    place = span(memory)
    assert regions.place(*place) is not None
    meanwhile = []

    def munmap(address: int, nbytes: int) -> int:
        meanwhile.append(regions.place(*place))
        return int(libc.munmap(address, nbytes))

    libc = growing._LIBC
    monkeypatch.setattr(growing, "_LIBC", SimpleNamespace(munmap=munmap))
    del memory
    assert meanwhile == [None]
    assert regions.place(*place) is None


def test_a_region_is_shared_once_and_again_as_it_grows(region: Path) -> None:
    told = Told()
    first = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(first[10:20])) == (1, 10)
    assert told.known.find(*span(first[20:30])) == (1, 20)
    os.truncate(region, SIZE + SIZE // 4)
    grown = np.frombuffer(mapped(region, SIZE + SIZE // 4), np.uint8)
    assert told.known.find(*span(grown[:SIZE])) == (1, 0)
    assert told.sizes == [(1, SIZE)], "nobody needs the rest yet"
    assert told.known.find(*span(grown[SIZE - 5 :])) == (1, SIZE - 5)
    assert told.known.find(*span(grown[SIZE:])) == (1, SIZE)
    assert told.sizes == [(1, SIZE), (1, SIZE + SIZE // 4)]
    told.known.forget()
    assert told.known.find(*span(grown[SIZE:])) == (2, SIZE)


def test_another_file_of_that_name_is_another_region(region: Path) -> None:
    told = Told()
    old = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(old)) == (1, 0)
    # Beside the old one, so that it gets another inode.
    other = region.with_name(region.name + "-new")
    other.write_bytes(bytes(SIZE))
    other.rename(region)
    new = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(new)) == (2, 0)
    unknown = Told()
    unknown.known._regions._mappings = told.known._regions._mappings
    unknown.known._regions._starts = told.known._regions._starts
    region.unlink()
    assert unknown.known.find(*span(new)) is None


def test_what_lies_elsewhere_is_shared_with_nobody() -> None:
    def share(path: str, before: int | None) -> int:
        raise AssertionError

    assert KnownRegions(share).find(*span(np.zeros(10, np.uint8))) is None


def test_where_a_mapping_has_ended_other_memory_may_lie(region: Path) -> None:
    """What was known of that address is not true any more."""
    regions = SharedRegions()
    with region.open("r+b") as file:
        ours = growing.mapped(file.fileno(), SIZE)
    known = span(ours)
    assert regions.place(*known) is not None
    before = growing.ended()
    del ours
    assert growing.ended() != before
    assert regions.place(*known) is None


@contextlib.contextmanager
def in_place_of(region: Path) -> Iterator[Array]:
    """A region of another name, when the file of this one has gone."""
    other = region.with_name(region.name + "-new")
    other.write_bytes(bytes(SIZE))
    region.unlink()
    try:
        yield np.frombuffer(mapped(other, SIZE), np.uint8)
    finally:
        other.unlink()


def test_regions_whose_files_have_gone_are_left_as_another_comes(region: Path) -> None:
    left: list[int] = []
    told = Told(left.append)
    old = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(old)) == (1, 0)
    region.unlink()
    assert told.known.find(*span(old)) == (1, 0), "it is known, and still lies there"
    assert left == []
    region.write_bytes(bytes(SIZE))
    second = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(second)) == (2, 0)
    assert left == [1], "the file of that name is another"
    with in_place_of(region) as third:
        assert told.known.find(*span(third)) == (3, 0)
    assert left == [1, 2]
    assert told.known.find(*span(old)) is None


def test_nothing_is_left_that_the_next_was_not_told_of(region: Path) -> None:
    left: list[int] = []
    told = Told(left.append)
    first = np.frombuffer(mapped(region, SIZE), np.uint8)
    assert told.known.find(*span(first)) == (1, 0)
    told.known.forget()
    with in_place_of(region) as second:
        assert told.known.find(*span(second)) == (2, 0)
    assert left == []
