"""Where a command that lasts says what happens: nobody may be there to read it any more, or have room for it."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import IO, cast

from pinstream_cli.console import Console
from pinstream_cli.terminal import behind


class _Stderr(io.TextIOBase):
    """What stderr is at any time, without the errors of writing to it."""

    def write(self, text: str) -> int:
        # Its reader has gone, its terminal is closed, its disk is full, or it is closed itself.
        with contextlib.suppress(OSError, ValueError):
            behind(sys.stderr).write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stderr.encoding


def lasting_console() -> Console:
    """A console on stderr that nothing which becomes of stderr ends: rich's own ends the program with its pipe."""
    return Console(file=cast(IO[str], _Stderr()))
