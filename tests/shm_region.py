"""A file in /dev/shm that is mapped as Triton's stub has its regions mapped."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def shm_region(nbytes: int) -> Iterator[Path]:
    """A region of zeros, gone afterwards; one at a time in a process."""
    path = Path(f"/dev/shm/pinstream-test-{os.getpid()}")
    path.write_bytes(bytes(nbytes))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def mapped(path: Path, nbytes: int) -> mmap.mmap:
    """The region's first bytes, shared and writable."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), nbytes)
