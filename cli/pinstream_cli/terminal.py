"""What reaches a terminal: texts from outside with their control characters shown, which could rewrite or retitle it.

Names of files, tensors and classes, and what servers say, are other people's. Whoever prints them need not think of it:
`show_controls` stands before stdout and stderr. What has sequences of its own, as rich has, goes past: see console.py.
"""

from __future__ import annotations

import io
import re
import sys
from typing import Any, TextIO, cast

# What the client's errors.printable does not show either (a test holds that), but new lines and tabs. Not taken from
# there: `import pinstream_client` takes in all of the client, and this stands before every command.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with its control characters written out, as \x1b; new lines and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show_controls() -> None:
    """Let stderr show control characters, and stdout where it is a terminal: else it may be data for a program."""
    sys.stderr = _shown(sys.stderr)
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout = _shown(sys.stdout)


def behind(stream: Any) -> TextIO:
    """The stream itself, for what has sequences of our own in it and all others shown."""
    return cast(TextIO, getattr(stream, "behind", stream))


class _Shown(io.TextIOBase):
    """A text stream that shows control characters. It has no `buffer`, so that nobody writes past it."""

    def __init__(self, stream: TextIO) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        # What its encoding has no bytes for is written out, too.
        encoding = self.encoding or "utf-8"
        self.behind.write(visible(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.behind.flush()

    def isatty(self) -> bool:
        return self.behind.isatty()

    def fileno(self) -> int:
        return self.behind.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.behind.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.behind.errors


def _shown(stream: Any) -> Any:
    return stream if isinstance(stream, _Shown) else _Shown(stream)
