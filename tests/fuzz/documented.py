"""The messages of docs/errors.md: every error that clients get has to be one of them, with the status it has there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
# What stands for a number, a name or some words there.
_PLACEHOLDER = re.compile(r"(\\ )?\\\.\\\.\\\.(\\ )?|\bN\b|\bM\b|\bW\\ x\\ H\b")
TRITONS_OWN = "Triton's own words"
# A status of gRPC, in the heading of a table or in front of its row; of HTTP, where it is another one than it would be.
_GRPC, _HTTP = re.compile(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b"), re.compile(r"(?:\(|HTTP says )(\d{3})\b")
_OVER_HTTP = {"INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "INTERNAL": "500", "UNAVAILABLE": "503"}


@dataclass(frozen=True)
class _Message:
    """A message of a table.

    Attributes:
        heading: Of the table.
        pattern: Its words.
        statuses: It comes with, of gRPC (INTERNAL) and of HTTP (500); empty where the page states none.
    """

    heading: str
    pattern: re.Pattern[str]
    statuses: frozenset[str]


def documented_in(message: str, status: str = "") -> str:
    """The heading in docs/errors.md of a table that has a message; empty where none has it.

    Args:
        message: What was said.
        status: The name of gRPC's status that came with it, or the number of HTTP's; empty where there is none.
    """
    found = (known for known in _messages() if known.pattern.search(message))
    return next((known.heading for known in found if not (status and known.statuses) or status in known.statuses), "")


@cache
def _messages() -> tuple[_Message, ...]:
    heading, of_heading, found = "", "", []
    for line in _ERRORS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading, _, of_heading = line.removeprefix("## ").partition(" - ")
        if line.startswith("|"):
            statuses = _statuses(of_heading or line.split("|")[1], line)
            for phrase in re.findall(r"\*\*(.+?)\*\*", line):
                # Looked for from every place of a message of megabytes, what may begin anywhere takes minutes.
                pattern = _PLACEHOLDER.sub(".*", re.escape(phrase)).removeprefix(".*")
                found.append(_Message(heading, re.compile(pattern, re.DOTALL), statuses))
    return tuple(found)


def _statuses(stated: str, row: str) -> frozenset[str]:
    """What a heading, or the first field of a row, states; in tables without statuses a message stands there itself."""
    if "**" in stated:
        return frozenset()
    names = _GRPC.findall(stated)
    return frozenset([*names, *(_HTTP.findall(row) or filter(None, map(_OVER_HTTP.get, names)))])
