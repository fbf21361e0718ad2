"""Options that several commands have: where the server is, and the thresholds."""

from __future__ import annotations

import click

from pinstream_cli.options import SECONDS, FiniteRange, together

server_options = together(
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

threshold_options = together(
    click.option("--conf", type=FiniteRange(0, 1), help="Lowest score. [default: the service's]"),
    click.option("--iou", type=FiniteRange(0, 1), help="Overlap above which NMS drops a box. [default: the service's]"),
    click.option("--max-det", type=click.IntRange(min=1), help="Most objects per image. [default: the service's]"),
)
