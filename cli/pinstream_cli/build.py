"""`pinstream build`: an official YOLOX export in, a proven serving graph and its sidecar out.

The steps: recognise the export, fuse the serving graph, verify it against the export, quantize it if that is asked for,
write both files. With --plan, TensorRT plans are made from that graph, or from any other model as it is: build_plan.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from pinstream_cli.apart import PATIENCE_S
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.build_plan import PlanWishes, plan_options, run
from pinstream_cli.console import Console, steps_of
from pinstream_cli.options import FiniteRange
from pinstream_cli.yolox_service import DEFAULT_CANDIDATES, BuildReport, build_apart


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory to write into.")
@click.option("--candidates", default=DEFAULT_CANDIDATES, show_default=True, help="Best boxes per image, 1 to 3840.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line. [default: COCO's, if 80]")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Real image to check with.")
@click.option("--int8", type=click.Path(path_type=Path), help="Quantize to INT8, calibrated on this folder's pictures.")
@click.option(
    "--timeout",
    default=PATIENCE_S,
    show_default=True,
    type=FiniteRange(min=1, max=86400),
    help="Seconds that a step of the work on MODEL may take; the building of plans is not among them.",
)
@click.option("--plan", is_flag=True, help="Build TensorRT plans as well. The options below are for these.")
@plan_options
def build(
    model: Path,
    out: Path,
    candidates: int,
    labels: Path | None,
    images: tuple[Path, ...],
    int8: Path | None,
    timeout: float,
    plan: bool,
    **wishes: Any,
) -> None:
    """Build the serving graph of a YOLOX export, MODEL, or the TensorRT plans of any ONNX model.

    Takes an ONNX file from YOLOX's own export tool (static or --dynamic, with or without --decode_in_inference) and
    writes model.onnx and model.json: uint8 images in, the best boxes out, any batch size. The result is compared with
    the export before it is written. With --plan, TensorRT plans are built from it or, where MODEL is no YOLOX export,
    from MODEL itself.

    With --int8, convolutions are quantized (explicit Q/DQ, for TensorRT and ONNX Runtime alike), calibrated on 64
    pictures of a folder, which should be like those to be served.
    """
    console = Console()
    make = partial(build_apart, model, seconds=timeout, candidates=candidates, labels=labels, images=images, int8=int8)
    try:
        if plan:
            if int8 is not None and wishes["precision"] == "fp16":
                raise BuildError("--int8 and --precision fp16 exclude each other; leave one of them out")
            run(model, out, PlanWishes(**wishes), partial(_fuse, make, int8), images, console)
            return
        if given := PlanWishes(**wishes).given():
            raise BuildError(f"{given[0].replace('_', '-')} is an option for plans; add --plan")
        with console.status("building") as status:
            report = make(out, progress=steps_of(status))
    except BuildError as error:
        more = "; for any other model add --plan" if isinstance(error, NotYoloxError) and not plan else ""
        click.echo(f"error: {error}{more}", err=True)
        sys.exit(2)
    console.print(summary(report))
    if report.hint:
        console.print(Text(f"hint: {report.hint}"), soft_wrap=True)


def _fuse(make: Callable[[Path], BuildReport], int8: Path | None, directory: Path) -> str:
    """Makes the serving graph in a directory, and gives the hint.

    Raises:
        NotYoloxError: The model is another one, of which plans can be built as it is.
        BuildError: It is another one, and was to be quantized.
    """
    try:
        return make(directory).hint
    except NotYoloxError as error:
        if int8 is None:
            raise
        raise BuildError(
            f"--int8 quantizes YOLOX exports only ({error}); quantize the model with a quantizer of your own "
            "(explicit Q/DQ, zero points of 0) and build its plan without --int8, which keeps a graph's own types"
        ) from error


def summary(report: BuildReport) -> Table:
    """A report as a table of two columns."""
    height, width = report.input_size
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    batches = sorted({check.batch for check in report.checks})
    rows = {
        "model": f"{report.model} ({_megabytes(report.model_bytes)})",
        "from": f"{report.source.name} ({_megabytes(report.source_bytes)}; {report.source_kind})",
        "input": f"images uint8 [batch, {height}, {width}, 3], BGR, letterboxed",
        "output": f"candidates float32 [batch, {report.candidates}, 6]",
        "classes": f"{len(report.labels)}: {', '.join(report.labels[:3])}{', ...' if len(report.labels) > 3 else ''}",
        "checked": f"{len(report.checks)} times against the export, batch {' and '.join(map(str, batches))}: "
        f"largest error {report.max_box_error_px:.2g} px, score {report.max_score_error:.2g}",
    }
    if (int8 := report.quantization) is not None:
        rows["precision"] = (
            f"int8 in {int8.convolutions} of {int8.convolutions + int8.kept} convolutions, calibrated on "
            f"{int8.pictures} pictures; `pinstream eval` tells what it costs"
        )
    rows["took"] = f"{report.seconds:.1f} s"
    for name, value in rows.items():
        table.add_row(name, Text(value))  # not markup: shapes are in brackets
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
