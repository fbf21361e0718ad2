"""The messages of docs/errors.md: every error that a client gets has to be one of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
# What stands for a number, a name or some words there.
_PLACEHOLDER = re.compile(r"(\\ )?\\\.\\\.\\\.(\\ )?|\bN\b|\bM\b|\bW\\ x\\ H\b")
TRITONS_OWN = "Triton's own words"


def documented_in(message: str) -> str:
    """The heading in docs/errors.md of a table that has a message; empty where none has it."""
    return next((heading for heading, pattern in _patterns() if pattern.search(message)), "")


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    heading, found = "", []
    for line in _ERRORS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        for phrase in re.findall(r"\*\*(.+?)\*\*", line) if line.startswith("|") else ():
            pattern = _PLACEHOLDER.sub(".*", re.escape(phrase))
            found.append((heading, re.compile(pattern, re.DOTALL)))
    return tuple(found)
