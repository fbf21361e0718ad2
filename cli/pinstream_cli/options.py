"""What the options of several commands are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number between two limits; not-a-number is between no two numbers, and infinity is none to calculate with."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads the number.

        Raises:
            click.BadParameter: It is none, not finite, or outside of the range.
        """
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class FromHere(click.Path):
    """A path that stays what it names from here: a command that lasts may lose its working directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Reads the path; where there is no working directory any more, a relative one stays as it is."""
        path = Path(value)
        if path.is_absolute():
            return path
        try:
            here = Path.cwd()
        except FileNotFoundError:
            return path
        # Not by way of the directory itself; links are left to whoever looks at where they lead.
        while path.parts[:1] == ("..",):
            here, path = here.parent, Path(*path.parts[1:])
        return here / path


# How long something may take, or lasts.
SECONDS = FiniteRange(min=0, min_open=True)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
