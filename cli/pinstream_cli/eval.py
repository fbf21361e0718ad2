"""`pinstream eval`: COCO's average precision of a running service, on any images with COCO-format annotations."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pinstream_cli.benchmark import environment
from pinstream_cli.console import Console
from pinstream_cli.detect.connection import connection, connection_options, told
from pinstream_cli.detect.options import server_options
from pinstream_cli.errors import CommandError
from pinstream_cli.evaluation.annotations import Annotations, read_annotations
from pinstream_cli.evaluation.classes import match_classes
from pinstream_cli.evaluation.precision import MOST_DETECTIONS, measure
from pinstream_cli.evaluation.report import Evaluation, Row, as_json, class_table, summary_table
from pinstream_cli.evaluation.run import Encode, as_it_is, detect_all, jpeg
from pinstream_cli.options import FiniteRange
from pinstream_client import Detector, PinstreamError

# Failed images that are listed one by one; the result file has them all.
_LISTED = 20
_UNLIMITED_WIDTH = 100_000


def _qualities(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Whole numbers from 1 to 100, separated by commas."""
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 100 for part in parts):
        raise click.BadParameter(f"{text!r} is no list of qualities from 1 to 100, as in 95,75,50")
    return tuple(int(part) for part in parts)


@click.command(epilog="Exit codes: 0 all done, 1 some images failed, 2 no usable server, annotations or command line.")
@click.option(
    "--annotations", required=True, type=click.Path(path_type=Path), help="COCO-format JSON: what is in the images."
)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="The folder its file names are in.")
@click.option(
    "--serve", "served", type=click.Path(path_type=Path), help="Serve this model meanwhile, as `pinstream serve` does."
)
@server_options(timeout_s=60.0)
@connection_options
@click.option("--conf", default=0.01, show_default=True, type=FiniteRange(0, 1), help="Lowest score.")
@click.option(
    "--iou", default=0.65, show_default=True, type=FiniteRange(0, 1), help="Overlap above which NMS drops a box."
)
@click.option(
    "--max-det", default=MOST_DETECTIONS, show_default=True, type=click.IntRange(1), help="Most objects per image."
)
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1), help="Images under way at once.")
@click.option(
    "--jpeg-quality",
    "qualities",
    callback=_qualities,
    metavar="N,N,...",
    help="Evaluate again with every image sent as JPEG of these qualities.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result file here.")
def eval(
    annotations: Path,
    images: Path,
    served: Path | None,
    url: str,
    protocol: Any,
    model: str,
    timeout: float,
    conf: float,
    iou: float,
    max_det: int,
    concurrency: int,
    qualities: tuple[int, ...],
    json_file: Path | None,
    **how: Any,
) -> None:
    """Measure the average precision of a service on annotated images.

    The defaults are those that YOLOX itself is evaluated with.

    \b
    Examples:
      pinstream eval --annotations instances_val2017.json --images val2017 -u gpu-host
      pinstream eval --annotations held_out/annotations.json --images held_out --serve service --json eval.json
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        truth = read_annotations(annotations, images)
        way_in = connection(**how)
        if served is not None and way_in["tls"]:
            raise CommandError("--serve starts a server that is not encrypted; leave out the --tls options")
        with (
            _service(served, url, protocol, console) as address,
            Detector(address, protocol, model=model, timeout=timeout, in_flight=concurrency, **way_in) as detector,
        ):
            thresholds = {"conf": conf, "iou": iou, "max_det": max_det}
            evaluation = _evaluate(detector, truth, thresholds, qualities, console)
        if json_file is not None:
            _write(json_file, as_json(evaluation, _command(how["headers"])))
    except (CommandError, PinstreamError) as error:
        click.echo(f"error: {told(error)}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        raise SystemExit(130) from None
    _print(evaluation)
    if evaluation.failures:
        _print_failures(evaluation)
        raise SystemExit(1)


@contextlib.contextmanager
def _service(model: Path | None, url: str, protocol: str | None, console: Console) -> Iterator[str]:
    """Where the service is: one that runs already, or one that runs as long as it is evaluated."""
    if model is None:
        yield url
        return
    try:
        from pinstream_cli.serve import serving
        from pinstream_cli.triton import Endpoints
    except ModuleNotFoundError as error:
        raise CommandError(f"--serve needs the module '{error.name}': pip install \"pinstream[server]\"") from None
    with serving(model, endpoints=Endpoints.free(), console=console) as server:
        at = server.endpoints
        yield f"http://{at.http_url}" if protocol == "http" else f"grpc://{at.grpc_url}"


def _evaluate(
    detector: Detector, truth: Annotations, thresholds: dict[str, Any], qualities: Sequence[int], console: Console
) -> Evaluation:
    detector.check_ready()
    classes = match_classes(detector.class_names(), truth.categories)
    ways: list[tuple[str, Encode]] = [("as they are", as_it_is)]
    ways += [(f"JPEG {quality}", jpeg(quality)) for quality in qualities]
    rows = []
    with _progress(console) as bar:
        for name, as_sent in ways:
            task = bar.add_task(name, total=len(truth.images))
            outcome = detect_all(detector, truth, as_sent, lambda: bar.advance(task), **thresholds)  # noqa: B023
            if not outcome.detections:
                first = min(outcome.failed)
                raise CommandError(f"every image failed; image {first}: {outcome.failed[first]}")
            rows.append(Row(name, outcome, measure(truth, outcome.detections, classes.categories)))
    return Evaluation(truth, str(detector.address), detector.model, thresholds, rows, classes.notes)


def _command(headers: Sequence[tuple[str, str]]) -> str:
    """The command line as the result file keeps it: a header may be a secret, and is left out."""
    words = ["pinstream", *sys.argv[1:]]
    for name, value in headers:
        words = [word.replace(value, "...") if value and name in word else word for word in words]
    return environment.command(words)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--json {path} cannot be written: {error.strerror or error}") from None


def _print(evaluation: Evaluation) -> None:
    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    # Class names are printed as they are, whatever brackets and colons they have.
    console = Console(width=width)
    console.print(class_table(evaluation))
    console.print(summary_table(evaluation))
    row = evaluation.rows[0]
    console.print(
        f"{len(row.outcome.detections)} images in {row.outcome.seconds:.1f} s through {evaluation.server}; "
        f"conf {evaluation.thresholds['conf']:g}, NMS {evaluation.thresholds['iou']:g}, "
        f"at most {evaluation.thresholds['max_det']} an image"
    )
    for note in evaluation.notes:
        console.print(f"note: {note}")


def _print_failures(evaluation: Evaluation) -> None:
    failures: Sequence[tuple[str, int, str]] = evaluation.failures
    total = len(evaluation.truth.images) * len(evaluation.rows)
    click.echo(f"{len(failures)} of {total} images failed and count as ones in which nothing was found:", err=True)
    for sent, number, why in failures[:_LISTED]:
        click.echo(f"  image {number} ({sent}): {why}", err=True)
    if len(failures) > _LISTED:
        click.echo(f"  and {len(failures) - _LISTED} more; --json FILE lists them all", err=True)
