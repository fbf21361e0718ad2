"""tritonserver's log as a file: the newest part of it, and whatever happens never a reason to stop reading."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO

# Clients cause log lines, so it must end somewhere. As much again is kept of what came before.
MOST_BYTES = 32 << 20


class LogFile:
    """Takes lines, on a full disk as well: what cannot be written is left out.

    Args:
        path: The file; what came before its present beginning is in one of the same name and .1 behind it.
        most_bytes: Of each of the two.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._file: IO[str] | None = None
        self._written = 0

    def write(self, line: str) -> None:
        """Add a line, with its end."""
        try:
            self._open().write(line)
            self._written += len(line.encode())
        except OSError:
            self.close()

    def _open(self) -> IO[str]:
        if self._file is not None and self._written >= self._most_bytes:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        if self._file is None:
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._written = self._file.tell()
        return self._file

    def close(self) -> None:
        """Close the file; another line opens it again."""
        if self._file is not None:
            # A full disk keeps what is buffered from being written, and then it is lost.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
