"""Files that are read only where they are files: a pipe may be waited for without end, and a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


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


def why_no_file(path: Path) -> str:
    """Of a path where `is_file` found none, what is there instead, as "is no regular file"; empty for nothing."""
    if path.exists():
        return "is no regular file"
    return "is a link that leads nowhere" if path.is_symlink() else ""
