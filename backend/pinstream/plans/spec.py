"""What to build: the user's wishes (BuildSpec), and what they mean for one model (PlanJob, one a plan file)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pinstream.engines.profiles import Range
from pinstream.errors import ConfigError
from pinstream.plans.graph import GraphTensor, has_dynamic_batch

PRECISIONS = ("fp32", "fp16")
# One static plan each, where nothing else is asked for: a batch in between is split or padded.
DEFAULT_BATCH_SIZES = (1, 4, 8, 16, 32)

Profile = Mapping[str, Range]


@dataclass(frozen=True)
class BuildSpec:
    """How plans are built.

    Attributes:
        precision: "fp32" keeps the types the graph states, be they FP32, FP16 or explicit quantization; "fp16" converts
            an FP32 graph, inputs and outputs kept.
        batch_sizes: One static plan for each; a static plan is faster than a dynamic one. Empty for 1, 4, 8, 16, 32.
        max_batch: One dynamic plan for 1 up to this many instead; 0 for static plans.
        shapes: Sizes of dynamic dimensions by input, without the batch dimension or, to set that too, with it. An
            input's second entry belongs to the second optimisation profile, and so on.
        fp32_nodes: Patterns of node names that stay in FP32 when the graph is converted to FP16.
        compute_capabilities: TensorRT-RTX: the GPUs to build for ("8.9", "current"); empty for all it supports.
        workspace_mb: Most scratch memory of a layer, in MiB; 0 for TensorRT's default, the whole GPU.
        version_compatible: tensorrt: the plan also runs on later versions; it can be slower.
        tf32: Let FP32 be multiplied in TF32, with 10 bits of mantissa: faster, and no longer what ONNX Runtime says.
            None for what the TensorRT at hand can do: not for tensorrt, but for TensorRT-RTX, which has no kernels
            without it for many networks.
        hardware_compatible: tensorrt: the plan runs on compute capability 8.0 and later; it can be slower.

    Raises:
        ConfigError: A value is impossible, or two contradict each other.
    """

    precision: str = "fp32"
    batch_sizes: tuple[int, ...] = ()
    max_batch: int = 0
    shapes: tuple[tuple[str, Range], ...] = ()
    fp32_nodes: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace_mb: int = 0
    tf32: bool | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision} is none of {', '.join(PRECISIONS)}")
        if any(size < 1 for size in self.batch_sizes) or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ConfigError(f"batch sizes {_list(self.batch_sizes)}: expected different numbers, 1 at least")
        if self.max_batch < 0 or self.workspace_mb < 0:
            raise ConfigError("a largest batch and a workspace cannot be negative")
        if self.batch_sizes and self.max_batch:
            raise ConfigError(
                "batch sizes (static plans) and a largest batch (one dynamic plan) exclude each other; give one of them"
            )
        for text in self.compute_capabilities:
            if not re.fullmatch(r"current|\d+\.\d", text):
                raise ConfigError(f"compute capability {text}: expected one as in 8.9, or current")

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> BuildSpec:
        """Read what a sidecar says of an earlier build.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: It is malformed.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in options.items() if name in known
        }
        shapes = (
            (str(name), Range(*(tuple(map(int, sizes[key])) for key in ("min", "opt", "max"))))
            for name, sizes in options.get("shapes", ())
        )
        values["shapes"] = tuple(shapes)
        return cls(**values)

    def arguments(self) -> list[str]:
        """The options of `pinstream build --plan` that ask for the same."""
        words = [] if self.precision == "fp32" else ["--precision", self.precision]
        if self.batch_sizes:
            words += ["--batch-sizes", ",".join(map(str, self.batch_sizes))]
        if self.max_batch:
            words += ["--max-batch", str(self.max_batch)]
        for name, r in self.shapes:
            words += ["--shape", ":".join([name, *("x".join(map(str, s)) for s in (r.min, r.opt, r.max))])]
        for option, values in (("--fp32-node", self.fp32_nodes), ("--compute-capability", self.compute_capabilities)):
            words += [word for value in values for word in (option, value)]
        if self.workspace_mb:
            words += ["--workspace", str(self.workspace_mb)]
        flags = {
            "--tf32": self.tf32 is True,
            "--no-tf32": self.tf32 is False,
            "--version-compatible": self.version_compatible,
            "--hardware-compatible": self.hardware_compatible,
        }
        return words + [flag for flag, on in flags.items() if on]


@dataclass(frozen=True)
class PlanJob:
    """One plan file to build.

    Attributes:
        file: Its name.
        batch: The batch size to fix in the graph; None to leave the graph as it is.
        profiles: The optimisation profiles; empty for a graph without dynamic dimensions.
    """

    file: str
    batch: int | None
    profiles: tuple[Profile, ...]


def parse_shape(text: str) -> tuple[str, Range]:
    """Read `NAME:MIN:OPT:MAX` or `NAME:SIZES`, sizes as in 3x640x640.

    Raises:
        ConfigError: It is neither, or the sizes do not ascend.
    """
    match = re.fullmatch(r"(.+?):(\d+(?:x\d+)*)(?::(\d+(?:x\d+)*):(\d+(?:x\d+)*))?", text)
    if not match:
        raise ConfigError(f"shape {text}: expected NAME:MIN:OPT:MAX, as in images:3x320x320:3x640x640:3x1280x1280")
    low, opt, high = (tuple(map(int, (group or match[2]).split("x"))) for group in match.groups()[1:])
    ascending = len(low) == len(opt) == len(high) and all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
    if not ascending:
        raise ConfigError(f"shape {text}: MIN, OPT and MAX must have as many sizes, none smaller than before")
    return match[1], Range(low, opt, high)


def plan_jobs(inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], spec: BuildSpec) -> list[PlanJob]:
    """The plan files that a specification means for a model.

    Args:
        inputs: The model's inputs.
        outputs: The model's outputs.
        spec: The wishes.

    Raises:
        ConfigError: The model cannot be built so, or a dynamic dimension is left open; the text says what to give.
    """
    shapes = _by_input(inputs, spec)
    ranks = {tensor.name: len(tensor.dims) for tensor in inputs}
    whole = any(len(r.min) == ranks[name] for name, ranges in shapes.items() for r in ranges)
    batched = has_dynamic_batch(inputs, outputs)
    if batched and not whole:
        if spec.max_batch:
            batch = Range((1,), (spec.max_batch,), (spec.max_batch,))
            return [PlanJob("model.plan", None, _profiles(inputs, shapes, batch))]
        sizes = sorted(spec.batch_sizes or DEFAULT_BATCH_SIZES)
        return [
            PlanJob(
                "model.plan" if len(sizes) == 1 else f"model.b{size}.plan",
                size,
                _profiles(inputs, shapes, Range((size,), (size,), (size,))),
            )
            for size in sizes
        ]
    _check_batch_wishes(inputs, spec, batched)
    return [PlanJob("model.plan", None, _profiles(inputs, shapes, None))]


def _check_batch_wishes(inputs: Sequence[GraphTensor], spec: BuildSpec, batched: bool) -> None:
    wished = spec.batch_sizes or ((spec.max_batch,) if spec.max_batch else ())
    if not wished:
        return
    if batched:
        raise ConfigError("shapes with the batch dimension set the batch sizes themselves; leave that dimension out")
    fixed = {tensor.dims[0] for tensor in inputs if tensor.dims}
    if fixed != set(wished):
        raise ConfigError(
            f"batch size {_list(wished)} is asked for, but the inputs are {_list(inputs)}; "
            "export the model with a dynamic batch dimension, or leave the batch size out"
        )


def _by_input(inputs: Sequence[GraphTensor], spec: BuildSpec) -> dict[str, list[Range]]:
    names = {tensor.name for tensor in inputs}
    shapes: dict[str, list[Range]] = {}
    for name, sizes in spec.shapes:
        if name not in names:
            raise ConfigError(f"a shape is given for '{name}', but the inputs are {_list(inputs)}")
        shapes.setdefault(name, []).append(sizes)
    counts = {len(ranges) for ranges in shapes.values()} - {1}
    if len(counts) > 1:
        raise ConfigError(f"{_list(sorted(counts))} shapes are given for different inputs; give one for each profile")
    return shapes


def _profiles(
    inputs: Sequence[GraphTensor], shapes: Mapping[str, Sequence[Range]], batch: Range | None
) -> tuple[Profile, ...]:
    count = max((len(ranges) for ranges in shapes.values()), default=1)
    profiles = []
    for index in range(count):
        profile = {}
        for tensor in inputs:
            ranges = shapes.get(tensor.name, ())
            given = ranges[min(index, len(ranges) - 1)] if ranges else None
            sizes = _resolve(tensor, given, batch)
            # Dimensions that the graph fixes need no profile, except the values of an input that is itself a shape.
            if given or not tensor.is_static:
                profile[tensor.name] = sizes
        profiles.append(profile)
    static = batch is not None and batch.min == batch.max and all(
        isinstance(dim, int) for tensor in inputs for dim in tensor.dims[1:]
    )  # fmt: skip
    return () if static or not any(profiles) else tuple(profiles)


def _resolve(tensor: GraphTensor, given: Range | None, batch: Range | None) -> Range:
    """The whole shapes of one input in one profile."""
    dims = tensor.dims[1:] if batch else tensor.dims
    if given is None:
        if any(isinstance(dim, str) for dim in dims):
            example = ":".join(["x".join(str(d if isinstance(d, int) else "N") for d in dims)] * 3)
            raise ConfigError(
                f"input {tensor} has dynamic dimensions whose sizes are not given; "
                f"give the smallest, usual and largest: --shape {tensor.name}:{example}"
            )
        fixed = tuple(int(dim) for dim in dims)
        given = Range(fixed, fixed, fixed)
    elif tensor.is_static:
        return given  # the values of a shape tensor; TensorRT judges them
    if len(given.min) != len(dims) or any(
        isinstance(dim, int) and {low, high} != {dim} for dim, low, high in zip(dims, given.min, given.max, strict=True)
    ):
        raise ConfigError(
            f"the shape {'x'.join(map(str, given.min))} to {'x'.join(map(str, given.max))} does not fit input {tensor}"
            + (", whose batch dimension is left out" if batch else "")
        )
    if batch is None:
        return given
    return Range(batch.min + given.min, batch.opt + given.opt, batch.max + given.max)


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
