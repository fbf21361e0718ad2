"""`pinstream bench`: what serving costs, measured against the bare engine in the same run."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.report import Result, as_json, print_table, write_json, write_samples
from pinstream_cli.benchmark.served import TRANSPORTS
from pinstream_cli.benchmark.suites import compare as compare_suite
from pinstream_cli.benchmark.suites import engine as engine_suite
from pinstream_cli.benchmark.suites import ensemble as ensemble_suite
from pinstream_cli.benchmark.suites import serve as serve_suite
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import Source
from pinstream_cli.build_error import BuildError
from pinstream_cli.errors import CommandError

Command = Callable[..., Any]


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


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _integers_option(option: str, name: str, default: str, text: str) -> Callable[[Command], Command]:
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
model_options = _options(
    click.option("--model", type=PATH, help="What to measure: a YOLOX export, what `pinstream build` made, any .onnx."),
    click.option("--name", help="Take --model as a plain model of this name, YOLOX or not."),
)
plan_options = _options(
    click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1), help="Windows of each row."),
    click.option("--window", default=3.0, show_default=True, type=click.FloatRange(0.3), help="Seconds of a window."),
    click.option(
        "--reference-window",
        default=0.0,
        type=click.FloatRange(0),
        help="Seconds of a window of the reference and of the warm-up.  [default: those of --window]",
    ),
    click.option("--limit", default=0.0, type=click.FloatRange(0), help="Seconds after which what is there has to do."),
    click.option(
        "--foreign",
        default=0.05,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Measure a window again in which other processes took a larger share of the CPU.",
    ),
)
output_options = _options(
    click.option("--json", "json_file", type=PATH, help="Write the result file here."),
    click.option("--save", is_flag=True, help="Write it, and every window, into the checkout's benchmarks/results."),
)
server_options = _options(
    click.option("--model-repository", "repository", type=PATH, help="Serve this instead; --name is the model in it."),
    click.option("-u", "--url", help="gRPC HOST:PORT of a server that runs already, with --model served by it."),
    click.option("--http-url", help="Its HTTP HOST:PORT.  [default: port 8000]"),
    click.option(
        "--transport",
        "transports",
        multiple=True,
        type=click.Choice(list(TRANSPORTS)),
        help="How requests travel; may be given several times.",
    ),
    click.option("--keep-raw", "keep", type=PATH, help="Keep perf_analyzer's own CSV files and output here."),
)


@click.group()
def bench() -> None:
    r"""Measure the server and its detector against the bare engine.

    Drives Triton's perf_analyzer: the one named by the environment variable PERF_ANALYZER, the one on PATH, or one
    that is fetched once into the cache directory.

    \b
    pinstream bench engine --model yolox_nano.onnx
    pinstream bench serve --model yolox_nano.onnx --batch 1,8 --concurrency 1,2,4
    pinstream bench ensemble --model yolox_nano.onnx --image dog.jpg --json ensemble.json
    """


@bench.command()
@model_options
@click.option(
    "--batch",
    "batches",
    default="1,4,8",
    show_default=True,
    callback=_integers,
    metavar="N,N,...",
    help="Items of a run.",
)
@shape_option
@plan_options
@output_options
def engine(**given: Any) -> None:
    """The engine in a loop without Triton, against the runtime's own session."""
    _bench(engine_suite.run, given)


@bench.command()
@model_options
@server_options
@click.option(
    "--batch",
    "batches",
    default="1,8",
    show_default=True,
    callback=_integers,
    metavar="N,N,...",
    help="Items of a request.",
)
@click.option(
    "--concurrency", "concurrencies", default="1,2,4", show_default=True, callback=_integers, metavar="N,N,..."
)
@shape_option
@plan_options
@output_options
def serve(**given: Any) -> None:
    """A model through Triton, against its bare loop."""
    given["transports"] = given["transports"] or ("grpc", "grpc+shm", "http+shm")
    _bench(serve_suite.run, given)


@bench.command()
@model_options
@server_options
@click.option("--image", "images", multiple=True, type=PATH, help="Encoded image to send; several are sent in turn.")
@click.option(
    "--batch",
    "batches",
    default="1",
    show_default=True,
    callback=_integers,
    metavar="N,N,...",
    help="Images of a request.",
)
@click.option(
    "--concurrency", "concurrencies", default="1,2,4,8", show_default=True, callback=_integers, metavar="N,N,..."
)
@plan_options
@output_options
def ensemble(**given: Any) -> None:
    """Encoded images in, boxes out, against the bare steps."""
    given["transports"] = given["transports"] or ("grpc",)
    _bench(ensemble_suite.run, given)


@bench.command()
@model_options
@click.option("--model-repository", "repository", type=PATH, help="Serve this instead; --name is the model in it.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME|DIRECTORY",
    help="One of benchmarks/peers, or a model directory; may be given several times.  [default: those for any model]",
)
@_integers_option("--batch", "batches", "1,8", "Items of a request; peers get the smallest.")
@_integers_option("--concurrency", "concurrencies", "1,2,4", "Requests under way at the same time.")
@click.option("--transport", type=click.Choice(list(TRANSPORTS)), default="grpc+shm", show_default=True)
@click.option("--poisson/--no-poisson", default=True, help="Also send requests at random times, at 70 % of capacity.")
@click.option("--keep-raw", "keep", type=PATH, help="Keep perf_analyzer's own CSV files and output here.")
@shape_option
@plan_options
@output_options
def compare(transport: str, **given: Any) -> None:
    """Pinstream, its peers and the bare engine in one run."""
    _bench(compare_suite.run, {**given, "transports": (transport,)})


def _bench(suite: Callable[[Setup], Result], given: dict[str, Any]) -> None:
    """Run a suite, show what it found, and write it where it was asked for."""
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        destination = _results_directory() if given["save"] else None
        with console.status("") as status:
            setup = _setup(given, console, status.update)
            result = suite(setup)
        content = as_json(result, shlex.join(["pinstream", *sys.argv[1:]]), setup.plan)
        _write(result, content, given["json_file"], destination)
    except (CommandError, BuildError) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        raise SystemExit(130) from None
    print_table(result, setup.plan, Console(width=None if sys.stdout.isatty() else 200, highlight=False))


def _setup(given: dict[str, Any], console: Console, progress: Callable[[str], None]) -> Setup:
    return Setup(
        source=Source(given["model"], given["name"], given.get("repository"), given.get("url"), given.get("http_url")),
        plan=Plan(
            given["repetitions"],
            given["window"],
            given["foreign"],
            progress=progress,
            reference_s=given["reference_window"],
            limit_s=given["limit"],
        ),
        console=console,
        batches=given["batches"],
        concurrencies=given.get("concurrencies", ()),
        transports=given.get("transports", ()),
        shapes=given.get("shapes", {}),
        images=given.get("images", ()),
        peers=given.get("peers", ()),
        poisson=given.get("poisson", False),
        keep=given.get("keep"),
    )


def _results_directory() -> Path:
    directory = environment.results_directory()
    if directory is None:
        raise CommandError("--save writes into a checkout's benchmarks/results, and this is none; use --json FILE")
    return directory


def _write(result: Result, content: dict[str, Any], json_file: Path | None, directory: Path | None) -> None:
    try:
        if json_file is not None:
            write_json(json_file, content)
        if directory is not None:
            name = f"{result.suite}-{'gpu' if content['machine']['gpus'] else 'cpu'}"
            write_json(directory / f"{name}.json", content)
            write_samples(directory / "raw" / f"{name}.csv", result.samples)
    except OSError as error:
        raise CommandError(f"{error.filename} cannot be written: {error.strerror}") from None
