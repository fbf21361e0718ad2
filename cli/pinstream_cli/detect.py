"""`pinstream detect`: images in, a table, JSON or annotated pictures out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pinstream_client import Detections, Detector, ModelTiming, PinstreamError, Statistics
from pinstream_client.drawing import require_opencv

# A table that is not printed on a terminal is as wide as its contents: a wrapped row is of no use in a file or a pipe.
_UNLIMITED_WIDTH = 100_000


@dataclass(frozen=True)
class Run:
    """What one call found.

    Attributes:
        detector: Who was asked.
        results: One for each image, in the order of the command line.
        seconds: Wall clock for all images.
        timings: The server's own time split; empty when the server does not tell it.
    """

    detector: Detector
    results: list[tuple[Path, Detections | PinstreamError]]
    seconds: float
    timings: tuple[ModelTiming, ...]

    @property
    def found(self) -> list[tuple[Path, Detections]]:
        """The images that worked."""
        return [(path, result) for path, result in self.results if isinstance(result, Detections)]

    @property
    def failed(self) -> list[tuple[Path, PinstreamError]]:
        """The images that did not."""
        return [(path, result) for path, result in self.results if isinstance(result, PinstreamError)]


@click.command(epilog="Exit codes: 0 all done, 1 some images failed, 2 no usable server or a wrong command line.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option(
    "-u", "--url", default="localhost", show_default=True, help="[grpc://|http://]HOST[:PORT]; port 8001 or 8000."
)
@click.option("-i", "--protocol", type=click.Choice(["grpc", "http"]), help="[default: as the URL says, else grpc]")
@click.option("-m", "--model", default="yolox", show_default=True, help="Name of the ensemble on the server.")
@click.option(
    "-t",
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for each request.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write annotated PNGs into this directory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--conf", type=click.FloatRange(0, 1), help="Lowest score. [default: the service's]")
@click.option(
    "--iou", type=click.FloatRange(0, 1), help="Overlap above which NMS drops a box. [default: the service's]"
)
@click.option("--max-det", type=click.IntRange(min=1), help="Most objects per image. [default: the service's]")
def detect(
    images: tuple[Path, ...],
    url: str,
    protocol: Any,
    model: str,
    timeout: float,
    out: Path | None,
    as_json: bool,
    conf: float | None,
    iou: float | None,
    max_det: int | None,
) -> None:
    """Find objects in images through a running server.

    \b
    Examples:
      pinstream detect dog.jpg
      pinstream detect *.jpg --out annotated --conf 0.4
      pinstream detect dog.jpg -u http://gpu-host:8000 --json
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    try:
        if out is not None:
            require_opencv()
            _make_directory(out)
        with Detector(url, protocol, model=model, timeout=timeout) as detector:
            run = _detect(detector, images, conf=conf, iou=iou, max_det=max_det)
    except PinstreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    problems = run.failed
    annotated = {} if out is None else _annotate(run.found, out, problems)
    if as_json:
        click.echo(json.dumps(as_dict(run, annotated), indent=2, ensure_ascii=False))
    else:
        _print_tables(run, annotated)
    if problems:
        click.echo(f"{len(problems)} of {len(run.results)} images failed:", err=True)
        for path, problem in problems:
            click.echo(f"  {path}: {problem}", err=True)
        sys.exit(1)


def _detect(detector: Detector, images: Sequence[Path], **thresholds: Any) -> Run:
    detector.check_ready()
    detector.class_names()  # a request of its own, which has no place in the time split
    before = _statistics(detector)
    started = time.perf_counter()
    results = detector.detect(list(images), on_error="return", **thresholds)
    seconds = time.perf_counter() - started
    after = _statistics(detector)
    timings = after.since(before) if before and after else ()
    return Run(detector, list(zip(images, results, strict=True)), seconds, timings)


def _statistics(detector: Detector) -> Statistics | None:
    """The server's counters, or None: a server that does not tell them must not cost the user the results."""
    try:
        return settled_statistics(detector)
    except PinstreamError:
        return None


def settled_statistics(detector: Detector, patience_s: float = 0.5) -> Statistics:
    """The counters once they stand still: Triton counts a request a moment after it has answered it."""
    deadline = time.monotonic() + patience_s
    latest = detector.statistics()
    while time.monotonic() < deadline:
        time.sleep(0.02)
        previous, latest = latest, detector.statistics()
        if latest == previous:
            break
    return latest


def as_dict(run: Run, annotated: dict[Path, Path]) -> dict[str, Any]:
    """The run as ``--json`` prints it."""
    images: list[dict[str, Any]] = []
    for path, result in run.results:
        entry: dict[str, Any] = {"image": str(path)}
        if isinstance(result, PinstreamError):
            entry["error"] = str(result)
        else:
            entry.update(result.to_dict())
        if path in annotated:
            entry["annotated"] = str(annotated[path])
        images.append(entry)
    return {
        "server": str(run.detector.address),
        "model": run.detector.model,
        "images": images,
        "seconds": round(run.seconds, 4),
        "server_timing": [timing.to_dict() for timing in run.timings],
    }


def detections_table(results: Sequence[tuple[Path, Detections]]) -> Table:
    """One row for each object; an image without any has a row that says so."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("box x1, y1, x2, y2 (pixels)", no_wrap=True)
    for path, detections in results:
        for item in detections:
            corners = ", ".join(f"{value:.1f}" for value in item.box)
            table.add_row(str(path), item.name, f"{item.score:.3f}", corners)
        if not len(detections):
            table.add_row(str(path), "(nothing found)", "", "")
    return table


def timing_table(timings: Sequence[ModelTiming]) -> Table:
    """The server's time split: the ensemble first, then its steps."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("server, ms per request", no_wrap=True)
    for heading in ("requests", "total", "queue", "input", "infer", "output"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, timing in enumerate(timings):
        stages = (timing.queue_ms, timing.compute_input_ms, timing.compute_infer_ms, timing.compute_output_ms)
        table.add_row(
            ("  " if index else "") + timing.model,
            str(timing.requests),
            *(f"{value:.2f}" for value in (timing.total_ms, *stages)),
        )
    return table


def _print_tables(run: Run, annotated: dict[Path, Path]) -> None:
    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    # File and class names are printed as they are, whatever brackets and colons they have.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    if run.found:
        console.print(detections_table(run.found))
        trips = [detections.round_trip_ms or 0.0 for _, detections in run.found]
        console.print(
            f"{len(run.found)} image{'s' if len(run.found) > 1 else ''} in {run.seconds:.2f} s through "
            f"{run.detector.address}; round trip {sum(trips) / len(trips):.1f} ms on average"
        )
        console.print(timing_table(run.timings) if run.timings else "the server does not tell its time split")
    for picture in annotated.values():
        console.print(f"wrote {picture}")


def _annotate(
    results: Sequence[tuple[Path, Detections]], directory: Path, problems: list[tuple[Path, PinstreamError]]
) -> dict[Path, Path]:
    """Writes the annotated pictures, image -> picture; those that cannot be drawn or written go to ``problems``."""
    cv2 = require_opencv()
    written: dict[Path, Path] = {}
    for path, detections in results:
        if path in written:
            continue
        target = _unused_name(directory, path.stem, set(written.values()))
        try:
            _, png = cv2.imencode(".png", detections.draw(path))
            target.write_bytes(png.tobytes())
        except PinstreamError as error:
            problems.append((path, error))
        except OSError as error:
            problems.append((path, PinstreamError(f"cannot write {target}: {error.strerror or error}")))
        else:
            written[path] = target
    return written


def _unused_name(directory: Path, stem: str, taken: set[Path]) -> Path:
    """``stem.png``; ``stem-2.png`` and so on for pictures of the same name out of several directories."""
    target, number = directory / f"{stem}.png", 1
    while target in taken:
        number += 1
        target = directory / f"{stem}-{number}.png"
    return target


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PinstreamError(f"cannot make the directory {directory}: {error.strerror or error}") from None
