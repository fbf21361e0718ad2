"""Files that several processes share: one at a time, and no reader sees half of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/pinstream`, or `~/.cache/pinstream`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinstream"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, waiting for whoever holds it; it ends with the process at the latest.

    The lock is a file beside `path`, which stays: removing it would let two processes hold two locks of one name.

    Raises:
        OSError: The directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that its readers see the old content or the new.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
