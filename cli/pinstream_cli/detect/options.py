"""Options that several commands have: where the server is, and the thresholds."""

from __future__ import annotations

from collections.abc import Callable

import click

from pinstream_cli.options import SECONDS, Command, FiniteRange, together


def server_options(timeout_s: float = 10.0) -> Callable[[Command], Command]:
    """Where the server is, and how long a request may take where nothing is said."""
    return together(
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
        click.option(
            "-t", "--timeout", default=timeout_s, show_default=True, type=SECONDS, help="Seconds for each request."
        ),
    )


threshold_options = together(
    click.option("--conf", type=FiniteRange(0, 1), help="Lowest score. [default: the service's]"),
    click.option("--iou", type=FiniteRange(0, 1), help="Overlap above which NMS drops a box. [default: the service's]"),
    click.option("--max-det", type=click.IntRange(min=1), help="Most objects per image. [default: the service's]"),
)
