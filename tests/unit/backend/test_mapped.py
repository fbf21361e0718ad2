"""A region is mapped and pinned once, and given back when its last user has gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pinstream.shared.mapped import MappedRegions
from pinstream.shared.memory import SharedMemory

SIZE = 1 << 16


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("region")
    os.ftruncate(fd, 2 * SIZE)
    yield fd
    os.close(fd)


class Pins:
    """Regions, and which of them are pinned."""

    def __init__(self) -> None:
        self.pinned: list[SharedMemory] = []
        self.regions = MappedRegions(self.pinned.append, self.pinned.remove)


def test_what_two_name_is_mapped_once_and_both_descriptors_are_closed(file: int) -> None:
    pins = Pins()
    first, second = os.dup(file), os.dup(file)
    region = pins.regions.use(first, SIZE)
    assert pins.regions.use(second, SIZE) is region
    assert pins.pinned == [region]
    for fd in (first, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_it_stays_until_the_last_has_gone(file: int) -> None:
    pins = Pins()
    region = pins.regions.use(os.dup(file), SIZE)
    pins.regions.use(os.dup(file), SIZE)
    pins.regions.leave(region)
    assert pins.pinned == [region]
    pins.regions.leave(region)
    assert pins.pinned == []
    assert pins.regions.use(os.dup(file), SIZE) is not region


def test_one_that_has_grown_is_another(file: int) -> None:
    pins = Pins()
    small, large = pins.regions.use(os.dup(file), SIZE), pins.regions.use(os.dup(file), 2 * SIZE)
    assert (small.data.nbytes, large.data.nbytes) == (SIZE, 2 * SIZE)
    small.data[5] = 7
    assert large.data[5] == 7
    pins.regions.leave(small)
    assert pins.pinned == [large]
