"""One check: what was looked at, what was found, and what to do where that is not right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FIX"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        area: What it belongs to: `versions`, `gpu`, `machine`, `leftovers`, or `model NAME`.
        name: What was looked at.
        status: OK; WARN where it works but may surprise; FIX where it will not work.
        found: What was found, with the figures.
        remedy: What to do; empty where there is nothing to do.
    """

    area: str
    name: str
    status: Status
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """As the JSON report has it."""
        return asdict(self)
