"""Files that a user names on the command line."""

from __future__ import annotations

from pathlib import Path

from pinstream.regular import open_regular

# Where a shell puts what it makes of `<(command)`: a pipe that somebody writes to.
STDIN = Path("/dev/stdin")
DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))


def read_named(path: Path) -> bytes:
    """The content of a file, but not of a pipe, which may wait for good; of a descriptor's where one is named.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    if path.parent in DESCRIPTORS or path == STDIN:
        return path.read_bytes()
    with open_regular(path) as stream:
        return stream.read()
