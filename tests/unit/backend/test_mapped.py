"""A region is mapped once, pinned piece by piece as it grows, and given back when its last user has gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pinstream.regions import address_of
from pinstream.shared.mapped import MappedRegions
from pinstream.tensors import Array

SIZE = 1 << 16


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("region")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


class Pins:
    """Regions, and what of them is pinned: address and bytes."""

    def __init__(self) -> None:
        self.pinned: list[tuple[int, int]] = []
        self.regions = MappedRegions(self._pin, self._unpin)

    def _pin(self, piece: Array) -> None:
        self.pinned.append((address_of(piece), piece.nbytes))

    def _unpin(self, piece: Array) -> None:
        self.pinned.remove((address_of(piece), piece.nbytes))


def test_what_two_name_is_mapped_once(file: int) -> None:
    pins = Pins()
    first, second = os.dup(file), os.dup(file)
    region = pins.regions.use(first)
    assert pins.regions.use(second) is region
    assert pins.pinned == [(region.address, SIZE)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)


def test_it_stays_until_the_last_has_gone(file: int) -> None:
    pins = Pins()
    region = pins.regions.use(os.dup(file))
    pins.regions.use(os.dup(file))
    pins.regions.leave(region)
    assert pins.pinned == [(region.address, SIZE)]
    pins.regions.leave(region)
    assert pins.pinned == []
    assert pins.regions.use(os.dup(file)) is not region


def test_what_has_come_is_pinned_and_what_was_there_is_not_again(file: int) -> None:
    pins = Pins()
    region = pins.regions.use(os.dup(file))
    pins.regions.grow(region)
    assert len(pins.pinned) == 1
    os.ftruncate(file, 3 * SIZE)
    # Another connection is the first to name what has come.
    pins.regions.use(os.dup(file))
    pins.regions.grow(region)
    assert pins.pinned == [(region.address, SIZE), (region.address + SIZE, 2 * SIZE)]
    for _ in range(2):
        pins.regions.leave(region)
    assert pins.pinned == []
