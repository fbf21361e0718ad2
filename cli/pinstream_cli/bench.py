"""`pinstream bench`: what serving costs, measured against the bare engine in the same run."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pinstream_cli.benchmark import environment, plots
from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.destinations import check_directory, check_file
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.options import (
    PATH,
    integers_option,
    keep_option,
    model_options,
    output_options,
    plan_options,
    repository_option,
    server_options,
    shape_option,
    transport_option,
)
from pinstream_cli.benchmark.report import Result, as_json, print_table, write_json, write_samples
from pinstream_cli.benchmark.suites import compare as compare_suite
from pinstream_cli.benchmark.suites import engine as engine_suite
from pinstream_cli.benchmark.suites import ensemble as ensemble_suite
from pinstream_cli.benchmark.suites import serve as serve_suite
from pinstream_cli.benchmark.suites import sweep as sweep_suite
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import Source, check_named
from pinstream_cli.benchmark.timeline import record
from pinstream_cli.benchmark.trace import say_computing
from pinstream_cli.console import Console, steps_of
from pinstream_cli.errors import CommandError
from pinstream_cli.options import FiniteRange

THERE = click.Path(path_type=Path, exists=True)
# A server takes so long to start at least, with a model of no size.
STARTS_S = 4.0
UNDER_WAY = "Requests under way at the same time."


@click.group()
def bench() -> None:
    """Measure the server and its detector against the bare engine.

    Drives Triton's perf_analyzer: the one named by the environment variable PERF_ANALYZER, the one on PATH, or one
    that is fetched once into the cache directory.

    \b
    Examples:
      pinstream bench engine --model yolox_nano.onnx
      pinstream bench serve --model yolox_nano.onnx --batch 1,8 --concurrency 1,2,4
      pinstream bench ensemble --model yolox_nano.onnx --image dog.jpg --json ensemble.json
      pinstream bench compare --model yolox_nano.onnx --plot plots
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped


@bench.command()
@model_options
@integers_option("--batch", "batches", "1,4,8", "Items of a run.")
@shape_option
@plan_options
@output_options
def engine(**given: Any) -> None:
    """The engine in a loop without Triton, against the runtime's own session."""
    _bench(engine_suite.run, given)


@bench.command()
@model_options
@server_options
@integers_option("--batch", "batches", "1,8", "Items of a request.")
@integers_option("--concurrency", "concurrencies", "1,2,4", UNDER_WAY)
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
@integers_option("--batch", "batches", "1", "Images of a request.")
@integers_option("--concurrency", "concurrencies", "1,2,4,8", UNDER_WAY)
@plan_options
@output_options
def ensemble(**given: Any) -> None:
    """Encoded images in, boxes out, against the bare steps."""
    given["transports"] = given["transports"] or ("grpc",)
    _bench(ensemble_suite.run, given)


@bench.command()
@model_options
@repository_option
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME|DIRECTORY",
    help="One of benchmarks/peers, or a model directory; may be given several times.  [default: those for any model]",
)
@integers_option("--batch", "batches", "1,8", "Items of a request; peers get the smallest.")
@integers_option("--concurrency", "concurrencies", "1,2,4", UNDER_WAY)
@transport_option
@click.option("--poisson/--no-poisson", default=True, help="Also send requests at random times, at 70 % of capacity.")
@keep_option
@shape_option
@plan_options
@output_options
def compare(transport: str, **given: Any) -> None:
    """Pinstream, its peers and the bare engine in one run."""
    _bench(compare_suite.run, {**given, "transports": (transport,)})


@bench.command()
@model_options
@repository_option
@click.option("--also", multiple=True, type=THERE, help="The model for another image size; may be given several times.")
@integers_option("--batch", "batches", "1,2,4,8,16,32", "Items of a request.")
@integers_option("--concurrency", "concurrencies", "1,2,4,8,16,32,64,128,256", UNDER_WAY)
@transport_option
@keep_option
@shape_option
@plan_options
@output_options
def sweep(transport: str, **given: Any) -> None:
    """How throughput and latency grow with load, requests and images."""
    _bench(sweep_suite.run, {**given, "transports": (transport,)})


@bench.command()
@model_options
@repository_option
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Items of a request.")
@click.option("--concurrency", default=64, show_default=True, type=click.IntRange(1), help=UNDER_WAY)
@click.option("--rate", default=0.0, type=FiniteRange(0), help="Requests a second at random times, instead.")
@transport_option
@click.option("--seconds", default=1.0, show_default=True, type=FiniteRange(0.3), help="Of load that are recorded.")
@click.option("--settle", default=3.0, show_default=True, type=FiniteRange(0.3), help="Seconds of load before these.")
@click.option("--show", default=50.0, show_default=True, type=FiniteRange(1), help="Milliseconds to draw large.")
@click.option("--out", type=PATH, required=True, help="Directory for the picture and its data.")
@shape_option
def timeline(
    batch: int,
    concurrency: int,
    rate: float,
    transport: str,
    seconds: float,
    settle: float,
    show: float,
    out: Path,
    **given: Any,
) -> None:
    """Draw what instances and engine do under load, and keep the data for chrome://tracing or Perfetto."""
    console = Console(stderr=True)
    with _errors_in_a_line():
        check_directory("--out", out)
        plots.check_matplotlib()
        check_named(_source(given))
        with alone(partial(console.print, soft_wrap=True)), console.status("") as status:
            setup = Setup(
                _source(given),
                Plan(progress=steps_of(status)),
                console,
                (batch,),
                (concurrency,),
                (transport,),
                given["shapes"],
            )
            recorded = record(setup, rate, seconds, settle, show, out, _command())
    click.echo(f"{recorded.images_per_s:.0f} images/s; {say_computing(recorded.computing)} of the time.")
    _name(recorded.files)


@bench.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=PATH, required=True, help="Directory for the pictures.")
def plot(result: Path, out: Path) -> None:
    """Draw a result file that was written before."""
    with _errors_in_a_line():
        plots.check_matplotlib()
        check_directory("--out", out)
        try:
            content = json.loads(result.read_text())
            drawn = _draw(content, out)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CommandError(f"{result} is no result file of `pinstream bench`: {error!r}") from None
        if not drawn:
            raise CommandError(f"{result} has nothing to draw: {plots.why_nothing(content)}")
        _name(drawn)


def _name(files: Sequence[Path]) -> None:
    for file in files:
        click.echo(f"  {file}")


@contextlib.contextmanager
def _errors_in_a_line() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        raise SystemExit(130) from None


def _bench(suite: Callable[[Setup], Result], given: dict[str, Any]) -> None:
    """Run a suite, show what it found, and write it where it was asked for."""
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _errors_in_a_line():
        destination = _results_directory() if given["save"] else None
        _check_destinations(given, destination)
        _check_limit(given, starts=suite is not engine_suite.run and given.get("url") is None)
        if suite is not ensemble_suite.run:  # which has a model of its own
            check_named(_source(given))
        # What runs is ended last: that may take long, and whoever cannot wait has the result by then.
        with alone(partial(console.print, soft_wrap=True)), contextlib.ExitStack() as closing:
            with console.status("") as status:
                setup = _setup(given, console, steps_of(status), closing)
                result = suite(setup)
            content = as_json(result, _command(), setup.plan)
            # Before anything is written: whatever becomes of that, the figures have been seen.
            print_table(result, setup.plan, Console(width=None if sys.stdout.isatty() else 200))
            _write(result, content, given["json_file"], destination)
            if given["plots"] is not None and not _draw(content, given["plots"]):
                click.echo(f"Nothing was drawn: {plots.why_nothing(content)}", err=True)
        if result.interrupted:
            raise KeyboardInterrupt  # as where nothing was measured by then, now that all of it is kept


def _command() -> str:
    return environment.command(["pinstream", *sys.argv[1:]])


def _check_destinations(given: dict[str, Any], results: Path | None) -> None:
    """See before anything is measured that what is found can be kept."""
    check_file("--json", given["json_file"])
    check_directory("--plot", given["plots"])
    check_directory("--keep-raw", given.get("keep"))
    check_directory("--save", results)
    if given["plots"] is not None:
        plots.check_matplotlib()


def _check_limit(given: dict[str, Any], *, starts: bool) -> None:
    """See that one window next to the reference can be measured in the time there is.

    Args:
        given: The command line.
        starts: Whether a server is started.
    """
    least = given["window"] + 2 * (given["reference_window"] or given["window"]) + STARTS_S * starts
    if 0 < given["limit"] < least:
        raise CommandError(
            f"--limit {given['limit']:g} is too short: {'the start of the server and ' * starts}a window between "
            f"two of the reference take {least:g} s at least; set a larger one, or a shorter --window"
        )


def _draw(content: dict[str, Any], directory: Path) -> list[Path]:
    try:
        return plots.draw(content, directory)
    except OSError as error:
        raise _not_written(error) from None


def _setup(
    given: dict[str, Any], console: Console, progress: Callable[[str], None], closing: contextlib.ExitStack
) -> Setup:
    return Setup(
        source=_source(given),
        plan=Plan(
            given["repetitions"],
            given["window"],
            given["foreign"],
            progress=progress,
            reference_s=given["reference_window"],
            ends=time.monotonic() + given["limit"] if given["limit"] else math.inf,
        ),
        console=console,
        batches=given["batches"],
        concurrencies=given.get("concurrencies", ()),
        transports=given.get("transports", ()),
        shapes=given.get("shapes", {}),
        images=given.get("images", ()),
        also=given.get("also", ()),
        peers=given.get("peers", ()),
        poisson=given.get("poisson", False),
        keep=given.get("keep"),
        closing=closing,
    )


def _source(given: dict[str, Any]) -> Source:
    return Source(given["model"], given["name"], given.get("repository"), given.get("url"), given.get("http_url"))


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
        raise _not_written(error) from None


def _not_written(error: OSError) -> CommandError:
    return CommandError(f"{error.filename or 'a file'} cannot be written: {error.strerror}")
