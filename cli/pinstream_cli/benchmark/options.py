"""Options of `pinstream bench`, in the groups that its suites share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from pinstream_cli.benchmark.served import TRANSPORTS
from pinstream_cli.options import Command, FiniteRange, together


def _integers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is no list of whole numbers above 0, as in 1,4,8")
    return tuple(sorted({int(part) for part in parts}))


def _shapes(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """NAME:DIM,DIM,... as item shapes by input."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        if not name or not all(dim.isdecimal() for dim in dims.split(",")):
            raise click.BadParameter(f"{text!r} is no NAME:DIM,DIM,...")
        shapes[name] = tuple(map(int, dims.split(",")))
    return shapes


def integers_option(option: str, name: str, default: str, text: str) -> Callable[[Command], Command]:
    """An option that takes whole numbers above 0, sorted and each once."""
    return click.option(
        option, name, default=default, show_default=True, callback=_integers, metavar="N,N,...", help=text
    )


PATH = click.Path(path_type=Path)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="NAME:DIM,...",
    help="Item shape of an input that has dynamic dimensions.",
)
transport_option = click.option(
    "--transport", type=click.Choice(list(TRANSPORTS)), default="grpc+shm", show_default=True
)
model_options = together(
    click.option("--model", type=PATH, help="What to measure: a YOLOX export, what `pinstream build` made, any .onnx."),
    click.option("--name", help="Take --model as a plain model of this name, YOLOX or not."),
)
foreign_option = click.option(
    "--foreign",
    default=0.05,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Measure a window again in which other processes took a larger share of the CPU.",
)
plan_options = together(
    click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1), help="Windows of each row."),
    click.option("--window", default=3.0, show_default=True, type=FiniteRange(0.3), help="Seconds of a window."),
    click.option(
        "--reference-window",
        default=0.0,
        type=FiniteRange(0),
        help="Seconds of a window of the reference and of the warm-up.  [default: those of --window]",
    ),
    click.option(
        "--limit",
        default=0.0,
        type=FiniteRange(0),
        help="Seconds, the server's start among them, after which what is there has to do.  [default: none]",
    ),
    foreign_option,
)
output_options = together(
    click.option("--json", "json_file", type=PATH, help="Write the result file here."),
    click.option("--plot", "plots", type=PATH, help="Draw what was found into this directory, as PNG and SVG."),
    click.option("--save", is_flag=True, help="Write it, and every window, into the checkout's benchmarks/results."),
)
repository_option = click.option(
    "--model-repository", "repository", type=PATH, help="Serve this instead; --name is the model in it."
)
keep_option = click.option("--keep-raw", "keep", type=PATH, help="Keep perf_analyzer's own CSV files and output here.")
server_options = together(
    repository_option,
    click.option("-u", "--url", help="gRPC HOST:PORT of a server that runs already, with --model served by it."),
    click.option("--http-url", help="Its HTTP HOST:PORT.  [default: port 8000]"),
    click.option(
        "--transport",
        "transports",
        multiple=True,
        type=click.Choice(list(TRANSPORTS)),
        help="How requests travel; may be given several times.",
    ),
    keep_option,
)
