"""Options that several commands have: where the server is, and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


SECONDS = FiniteRange(min=0, min_open=True)

server_options = _all(
    click.option(
        "-u",
        "--url",
        default="localhost",
        show_default=True,
        help="[grpc[s]://|http[s]://]HOST[:PORT]; port 8001 or 8000.",
    ),
    click.option(
        "-i",
        "--protocol",
        type=click.Choice(["grpc", "http"], case_sensitive=False),
        help="[default: as the URL says, else grpc]",
    ),
    click.option("-m", "--model", default="yolox", show_default=True, help="Name of the ensemble on the server."),
    click.option("-t", "--timeout", default=10.0, show_default=True, type=SECONDS, help="Seconds for each request."),
)

threshold_options = _all(
    click.option("--conf", type=FiniteRange(0, 1), help="Lowest score. [default: the service's]"),
    click.option("--iou", type=FiniteRange(0, 1), help="Overlap above which NMS drops a box. [default: the service's]"),
    click.option("--max-det", type=click.IntRange(min=1), help="Most objects per image. [default: the service's]"),
)
