"""Files that are read only where they are files: a pipe may be waited for without end, and a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# More than any configuration or sidecar has: a file that only looks large would be read into memory whole.
MOST_BYTES = 16 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a directory.
    """
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_small(path: Path) -> bytes | None:
    """The content of a configuration or the like; None where it is larger than MOST_BYTES, of which nothing is kept.

    Raises:
        OSError: As `open_regular` raises it.
    """
    with open_regular(path) as stream:
        content = stream.read(MOST_BYTES + 1)
    return content if len(content) <= MOST_BYTES else None


def why_no_file(path: Path) -> str:
    """Of a path where `is_file` found none, what is there instead, as "is no regular file"; empty for nothing."""
    if path.exists():
        return "is no regular file"
    return "is a link that leads nowhere" if path.is_symlink() else ""
