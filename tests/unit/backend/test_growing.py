"""A file that grows keeps its place, and goes with the last view of it."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstream.growing import GrowingFile, mapped
from pinstream.regions import address_of

PAGE = mmap.PAGESIZE


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("pinstream-growing")
    os.ftruncate(fd, 2 * PAGE)
    yield fd
    os.close(fd)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("pinstream-growing")


def test_what_is_known_stays_where_it_is(file: int) -> None:
    growing = GrowingFile(os.dup(file))
    assert growing.data.nbytes == 0
    first = growing.grow()
    assert first is not None
    assert growing.grow() is None
    os.pwrite(file, b"old", 5)
    os.ftruncate(file, 5 * PAGE)
    os.pwrite(file, b"new", 2 * PAGE)
    second = growing.grow()
    assert second is not None
    assert address_of(second) == growing.address + 2 * PAGE == address_of(first) + first.nbytes
    assert (second.nbytes, growing.data.nbytes) == (3 * PAGE, 5 * PAGE)
    assert bytes(first[5:8]) == bytes(growing.data[5:8]) == b"old"
    assert bytes(second[:3]) == bytes(growing.data[2 * PAGE : 2 * PAGE + 3]) == b"new"
    growing.data[0] = 7
    assert os.pread(file, 1, 0) == b"\x07", "not a copy"


def test_no_page_is_in_two_pieces(file: int) -> None:
    growing = GrowingFile(os.dup(file))
    os.ftruncate(file, 2 * PAGE + 10)
    growing.grow()
    os.ftruncate(file, 2 * PAGE + 20)
    assert growing.grow() is None, "its page was there as a whole"
    os.ftruncate(file, 4 * PAGE)
    growing.grow()
    assert [piece.nbytes for piece in growing.pieces] == [3 * PAGE, PAGE]


def test_it_is_mapped_until_nobody_has_a_view_of_it(file: int) -> None:
    before = mappings()
    growing = GrowingFile(os.dup(file))
    growing.grow()
    view, fd = growing.data[3:9], growing._fd
    del growing
    gc.collect()
    assert mappings() == before + 1
    assert not view.any()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    del view
    gc.collect()
    assert mappings() == before


def test_what_cannot_be_mapped_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bytes of addresses cannot be had"):
        GrowingFile(os.open(tmp_path, os.O_RDONLY))


def test_what_lies_behind_its_addresses_is_left_out(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream.growing.RESERVED", (3 * PAGE,))
    growing = GrowingFile(os.dup(file))
    os.ftruncate(file, 5 * PAGE)
    growing.grow()
    assert growing.data.nbytes == 3 * PAGE
    assert growing.grow() is None


def test_where_addresses_are_few_fewer_are_set_aside(file: int) -> None:
    script = """
import os, resource, sys
from pinstream.growing import RESERVED, GrowingFile
resource.setrlimit(resource.RLIMIT_AS, (RESERVED[1] * 2, RESERVED[1] * 2))
growing = GrowingFile(int(sys.argv[1]))
growing.grow()
print(growing._whole.nbytes == RESERVED[1], growing.data.nbytes)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(file)], pass_fds=(file,), capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["True", str(2 * PAGE)]


def test_memory_of_a_fixed_size_keeps_no_descriptor(file: int) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    memory = mapped(file, 2 * PAGE)
    assert descriptors() == before
    memory[7] = 9
    assert os.pread(file, 1, 7) == b"\x09"
