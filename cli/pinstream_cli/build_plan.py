"""The part of `pinstream build` that makes TensorRT plans: its options, what is built from what, and the summary."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pinstream.errors import PinstreamError
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.console import Console

if TYPE_CHECKING:
    from pinstream.engines.flavour import Flavour
    from pinstream.plans import BuildSpec, PlanBuild
    from pinstream_cli.yolox_half import HalfError

F = TypeVar("F", bound=Callable[..., Any])

# Builds the serving graph of a YOLOX export in a directory, and gives a hint for the user or an empty text; raises
# NotYoloxError for any other model.
Fuse = Callable[[Path], str]


@dataclass(frozen=True)
class PlanWishes:
    """The plan options of the command line, as given; None or empty where they were not."""

    precision: str | None = None
    batch_sizes: str | None = None
    max_batch: int | None = None
    shapes: tuple[str, ...] = ()
    fp32_nodes: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    flavour: str | None = None
    workspace: int | None = None
    tf32: bool | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugins: tuple[Path, ...] = ()

    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [name for name, value in vars(self).items() if value or (name == "tf32" and value is not None)]

    def spec(self) -> BuildSpec:
        """The specification they ask for.

        Raises:
            BuildError: A value is malformed.
            ConfigError: A value is impossible, or two contradict each other.
        """
        from pinstream.plans import BuildSpec, parse_shape

        return BuildSpec(
            precision=self.precision or "fp32",
            batch_sizes=_numbers(self.batch_sizes),
            max_batch=self.max_batch or 0,
            shapes=tuple(parse_shape(text) for text in self.shapes),
            fp32_nodes=self.fp32_nodes,
            compute_capabilities=self.compute_capabilities,
            workspace_mb=self.workspace or 0,
            tf32=self.tf32,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            plugins=tuple(map(str, self.plugins)),
        )


_OPTIONS = (
    click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="fp32 keeps the model's types. [fp32]"),
    click.option("--batch-sizes", metavar="N,N,...", help="One static plan for each. [1,2,4,8,12,16,24,32]"),
    click.option("--max-batch", type=click.IntRange(1), help="One dynamic plan for 1 up to this instead."),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME:MIN:OPT:MAX",
        help="Sizes of dynamic dimensions, as 3x640x640.",
    ),
    click.option("--fp32-node", "fp32_nodes", multiple=True, metavar="PATTERN", help="Nodes that fp16 leaves alone."),
    click.option(
        "--compute-capability", "compute_capabilities", multiple=True, metavar="CC", help="TensorRT-RTX: 8.9, current."
    ),
    click.option("--flavour", type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]), help="Which TensorRT. [auto]"),
    click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most scratch memory of a layer."),
    click.option(
        "--tf32/--no-tf32",
        default=None,
        help="Multiply FP32 in TF32: faster, with 10 bits of mantissa. [RTX: yes, else no]",
    ),
    click.option("--version-compatible", is_flag=True, help="tensorrt: runs on later versions; can be slower."),
    click.option("--hardware-compatible", is_flag=True, help="tensorrt: runs on 8.0 and later; can be slower."),
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE.so",
        type=click.Path(path_type=Path),
        help="A library of plugins that the model needs; serving it needs the parameter PLUGINS.",
    ),
)


def plan_options(command: F) -> F:
    """Adds the plan options to a command, which gets them as keywords named as PlanWishes' fields."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def run(model: Path, out: Path, wishes: PlanWishes, fuse: Fuse, images: Sequence[Path], console: Console) -> None:
    """Builds the plans of a model, showing how far it is, and prints what came out.

    Args:
        model: A YOLOX export, a serving graph, or any other ONNX model.
        out: The directory to write into.
        wishes: How to build.
        fuse: Makes the serving graph of a YOLOX export.
        images: Real images to compare FP16 with FP32 on, besides a drawn one.
        console: Where to print.

    Raises:
        BuildError: It cannot be built; the directory is as it was.
    """
    try:
        from pinstream.engines.flavour import load_flavour, register_plugins
        from pinstream.plans import build_plan
        from pinstream_cli.onnx_files import load_onnx
    except ImportError as error:
        raise BuildError(f"{error}; building needs more packages: pip install 'pinstream[server]'") from error

    with tempfile.TemporaryDirectory(prefix="pinstream-build-") as scratch_name:
        scratch = Path(scratch_name)
        no_yolox = ""
        try:
            spec, flavour = wishes.spec(), load_flavour(wishes.flavour or "auto")
            register_plugins(flavour, wishes.plugins)
            load_onnx(model)  # its errors know best what people give for a model
            source, hint, no_yolox = _serving_graph(model, scratch, fuse, console)
            half = _half_error(source, spec, images, console)
            with _progress(console) as bar:
                tasks: dict[str, TaskID] = {}

                def show(file: str, fraction: float) -> None:
                    if file not in tasks:
                        tasks[file] = bar.add_task(file, total=1)
                    bar.update(tasks[file], completed=fraction)

                sections = {"fp16_check": {**asdict(half), "against": "the same graph in fp32"}} if half else {}
                built = build_plan(source, out, spec, flavour, progress=show, sections=sections)
            kernels, complaint = _compile_kernels(built, flavour, console)
        except PinstreamError as error:
            text = str(error).replace(str(scratch / model.name), str(model))
            raise BuildError(text + (f"; taken as it is: {no_yolox}" if no_yolox else "")) from error
        except OSError as error:
            raise BuildError(
                f"{out}: cannot be written ({error.strerror}); choose another directory with -o"
            ) from error
    console.print(summary(model, built, half, kernels))
    for text in built.warnings:
        console.print(Text(f"warning: {text}", style="bold red"), soft_wrap=True)
    for text in filter(None, (hint, complaint)):
        console.print(Text(f"hint: {text}"), soft_wrap=True)


def _serving_graph(model: Path, scratch: Path, fuse: Fuse, console: Console) -> tuple[Path, str, str]:
    """What the plan is built from: the serving graph of a YOLOX export, or else the model itself.

    Returns:
        The file, fuse's hint, and why it is no YOLOX export.
    """
    try:
        with console.status("fusing the serving graph"):
            hint = fuse(scratch)
    except NotYoloxError as error:
        return model, "", str(error)
    # Under the export's name, which is what messages about it should say.
    return Path(shutil.move(scratch / "model.onnx", scratch / model.name)), hint, ""


def _half_error(source: Path, spec: BuildSpec, images: Sequence[Path], console: Console) -> HalfError | None:
    """What FP16 changes in the boxes; None where the model is no YOLOX serving graph, or stays in FP32."""
    from pinstream_cli.yolox_graph import is_serving_graph
    from pinstream_cli.yolox_half import half_error

    if spec.precision != "fp16" or not is_serving_graph(source):
        return None
    with console.status("comparing FP16 with FP32"):
        return half_error(source, spec.fp32_nodes, images)


def _compile_kernels(built: PlanBuild, flavour: Flavour, console: Console) -> tuple[str, str]:
    """Runs the plans once where they may run here, so that their first start finds its kernels compiled.

    TensorRT-RTX compiles them for the GPU at hand, which takes seconds a plan, and keeps them in a cache.

    Returns:
        What was done, and why it could not be; either may be empty.
    """
    from pinstream.preflight import this_gpu

    gpu = this_gpu()
    wanted = built.sidecar.sections["tensorrt"]["compute_capabilities"]
    if gpu is None or not flavour.is_rtx or (wanted and gpu.compute_capability not in wanted):
        return "", ""
    # Only here: these need a GPU's packages.
    from pinstream.engines import find_model_file, open_engine
    from pinstream.options import Options

    options = Options(engine=flavour.name)
    started = time.monotonic()
    try:
        with console.status(f"compiling for {gpu}"):
            open_engine(find_model_file(built.directory, options), options).close()
    except PinstreamError as error:
        return "", f"the plans are built, but do not run here: {error}"
    return f"compiled for {gpu} in {time.monotonic() - started:.1f} s, and kept for the first start", ""


def _numbers(text: str | None) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() for part in parts):
        raise BuildError(f"--batch-sizes {text}: expected numbers separated by commas, as in 1,4,8")
    return tuple(int(part) for part in parts)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def summary(model: Path, built: PlanBuild, half: HalfError | None = None, kernels: str = "") -> Table:
    """A build as a table of two columns."""
    section = built.sidecar.sections["tensorrt"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = [
        ("plan" if index == 0 else "", f"{built.directory / plan.file} ({size / 1e6:.1f} MB)")
        for index, (plan, size) in enumerate(zip(built.plans, built.sizes, strict=True))
    ]
    rows.append(("from", model.name))
    for kind, tensors in (("input", built.plans[0].inputs), ("output", built.plans[0].outputs)):
        entries = {t.name: t for t in (*built.sidecar.inputs, *built.sidecar.outputs)}
        rows += [(kind, f"{t.name} {t.dtype} [{', '.join(map(str, entries[t.name].shape))}]") for t in tensors]
    for profile, ranges in enumerate(zip(*(t.ranges for t in built.plans[0].inputs), strict=False)):
        if any(r.min != r.max for r in ranges):
            named = zip((t.name for t in built.plans[0].inputs), ranges, strict=True)
            texts = [f"{name} {_sizes(r.min)} to {_sizes(r.max)}, tuned for {_sizes(r.opt)}" for name, r in named]
            rows.append((f"profile {profile}", "; ".join(texts)))
    inexact = ", multiplied in TF32" if section["precision"] == "fp32" and section["tf32"] else ""
    rows.append(("precision", section["precision"] + inexact + (f"; {half}" if half else "")))
    wanted = section["compute_capabilities"] or [section["compute_capability"] or "every GPU it supports"]
    rows.append(("built by", f"{built.flavour}, for {', '.join(wanted)}"))
    if kernels:
        rows.append(("kernels", kernels))
    rows.append(("took", f"{built.seconds:.1f} s"))
    for name, value in rows:
        table.add_row(name, Text(value))  # not markup: shapes are in brackets
    return table


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
