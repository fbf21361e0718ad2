"""What references may lead to in /dev/shm: regions of this user's that are some, and nothing else that lies there."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pinstream.errors import NoLongerThere
from pinstream.references import HEADER, MAGIC, REFERENCE, ROW, ROWS_AT, References
from pinstream.tensors import Array
from tests.places import TENSOR, held_with, name_of_region, numbers, places, read
from yolox_steps.places import DIRECTORY, Places


def reference(name: str, first: int = 0, nbytes: int = TENSOR.item_bytes, token: bytes = b"t" * 16) -> Array:
    named = hashlib.sha256(os.fsencode(name)).digest()
    return np.frombuffer(REFERENCE.pack(MAGIC, first, nbytes, token, named), np.uint8).reshape(1, -1)


def as_region(token: bytes = b"t" * 16) -> bytes:
    """The bytes of a region whose places all have a token."""
    head = bytearray(HEADER + 4 * TENSOR.item_bytes)
    head[:16] = MAGIC + TENSOR.item_bytes.to_bytes(8, "little")
    rows = np.frombuffer(head, np.uint8)[ROWS_AT:HEADER].view(ROW)
    rows["token"] = np.frombuffer(token, "<u8")
    rows["filled"] = time.monotonic()
    return bytes(head)


@pytest.fixture
def path() -> Iterator[Path]:
    path = DIRECTORY / name_of_region()
    yield path
    path.unlink(missing_ok=True)


def test_a_region_of_anybody_who_keeps_to_the_format_is_read(path: Path, readers: References) -> None:
    path.write_bytes(as_region())
    assert read(readers, reference(path.name)).shape == (1, 8, 8)


@pytest.mark.parametrize("content", [b"", MAGIC, as_region()[:HEADER], b"PINSREF2" + as_region()[8:]])
def test_a_file_that_is_no_region_is_not_read(path: Path, readers: References, content: bytes) -> None:
    path.write_bytes(content)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(NoLongerThere):
        read(readers, reference(path.name))
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_region_that_is_shorter_than_it_says_is_not_read(path: Path, readers: References) -> None:
    path.write_bytes(as_region())
    assert read(readers, reference(path.name, 3)).shape == (1, 8, 8)
    path.unlink()
    path.write_bytes(as_region()[:-1])
    with pytest.raises(NoLongerThere):
        read(References([TENSOR]), reference(path.name, 3))


def test_a_link_is_not_followed(path: Path, tmp_path: Path, readers: References) -> None:
    (tmp_path / "elsewhere").write_bytes(as_region())
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoLongerThere):
        read(readers, reference(path.name))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file_is_not_waited_for(path: Path, readers: References, make: Callable[[Path], None]) -> None:
    make(path)
    try:
        with pytest.raises(NoLongerThere):
            read(readers, reference(path.name))
    finally:
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_region_of_another_user_is_not_read(path: Path, readers: References) -> None:
    path.write_bytes(as_region())
    os.chown(path, 12345, 12345)
    with pytest.raises(NoLongerThere):
        read(readers, reference(path.name))


@pytest.mark.parametrize("name", ["{}", "../dev/shm/{}", "/dev/shm/{}", "./{}", "{}/../{}"])
def test_only_regions_of_places_are_looked_at(readers: References, name: str, path: Path) -> None:
    other = path.with_name(f"pinstream-test-{os.getpid()}_places")
    for file in (other, path):
        file.write_bytes(as_region())
    try:
        file = other if name == "{}" else path
        with pytest.raises(NoLongerThere):
            read(readers, reference(name.replace("{}", file.name)))
    finally:
        other.unlink()


def test_names_that_are_no_text_hide_no_region(made: Places, readers: References) -> None:
    odd = os.path.join(os.fsencode(DIRECTORY), b"triton_python_backend_shm_region_\xff_places")
    open(odd, "wb").close()
    try:
        np.testing.assert_array_equal(read(readers, held_with(made, numbers(1)).references), numbers(1))
    finally:
        os.unlink(odd)


def test_references_do_not_tell_the_name(readers: References) -> None:
    """By it any client of an older Triton that lets them bring shared memory could have the region opened."""
    name = name_of_region()
    with places(name) as made:
        told = held_with(made, numbers(3)).references.tobytes()
    assert name.encode() not in told
    assert b"shm" not in told


def test_what_is_known_is_read_after_its_name_has_gone(readers: References) -> None:
    name = name_of_region()
    with places(name) as made:
        read(readers, held_with(made, numbers(1)).references)
        (DIRECTORY / name).unlink()
        np.testing.assert_array_equal(read(readers, held_with(made, numbers(2, 1)).references), numbers(2, 1))


def test_nothing_stays_of_regions_that_have_gone(readers: References) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before: tuple[int, int] | None = None
    for i in range(6):
        with places() as made:
            view = read(readers, held_with(made, numbers(1, i)).references)
        del made
        np.testing.assert_array_equal(view, numbers(1, i))
        del view
        mapped = Path("/proc/self/maps").read_text().count("_places")
        before = before or (mapped, descriptors())
        assert (mapped, descriptors()) == before, "the last is known until another comes"
