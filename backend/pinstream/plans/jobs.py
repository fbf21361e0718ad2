"""What a BuildSpec means for one model: its PlanJobs, one a plan file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pinstream.engines.build_spec import BuildSpec
from pinstream.engines.profiles import Range
from pinstream.errors import ConfigError
from pinstream.plans.graph import GraphTensor, has_dynamic_batch

# One static plan each, where nothing else is asked for: a batch in between is split or padded.
# With 1, 4, 8, 16 and 32 the p99 of random arrivals at 70 % of the capacity was half as long again
# (docs/performance.md).
DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32)

Profile = Mapping[str, Range]


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
    _check_batch_wishes(inputs, outputs, spec, batched)
    return [PlanJob("model.plan", None, _profiles(inputs, shapes, None))]


def smallest_shapes(inputs: Sequence[GraphTensor], job: PlanJob) -> dict[str, tuple[int, ...]]:
    """The smallest shape of every input that a plan takes in its first profile, batch included."""
    profile = job.profiles[0] if job.profiles else {}
    return {
        tensor.name: profile[tensor.name].min
        if tensor.name in profile and not tensor.is_static
        else tuple(dim if isinstance(dim, int) else job.batch or 1 for dim in tensor.dims)
        for tensor in inputs
    }


def _check_batch_wishes(
    inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], spec: BuildSpec, batched: bool
) -> None:
    wished = spec.batch_sizes or ((spec.max_batch,) if spec.max_batch else ())
    if not wished:
        return
    if batched:
        raise ConfigError("shapes with the batch dimension set the batch sizes themselves; leave that dimension out")
    fixed = {tensor.dims[0] for tensor in inputs if tensor.dims}
    if has_dynamic_batch(inputs, ()):
        others = [tensor for tensor in outputs if not has_dynamic_batch(inputs, [tensor])]
        raise ConfigError(
            f"batch size {_list(wished)} is asked for, but output {_list(others)} has not one entry for each item of "
            f"the inputs, which are {_list(inputs)}; leave the batch size out and give the whole shapes: "
            f"{' '.join(_example(tensor, tensor.dims) for tensor in inputs)}"
        )
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
            raise ConfigError(
                f"input {tensor} has dynamic dimensions whose sizes are not given; "
                f"give the smallest, usual and largest: {_example(tensor, dims)}"
            )
        fixed = tuple(int(dim) for dim in dims)
        given = Range(fixed, fixed, fixed)
    elif tensor.is_static:
        return given  # the values of a shape tensor; TensorRT judges them
    if len(given.min) != len(dims) or any(
        low < 0 or (isinstance(dim, int) and {low, high} != {dim})
        for dim, low, high in zip(dims, given.min, given.max, strict=True)
    ):
        raise ConfigError(
            f"the shape {'x'.join(map(str, given.min))} to {'x'.join(map(str, given.max))} does not fit input {tensor}"
            + (", whose batch dimension is left out" if batch else "")
        )
    if batch is None:
        return given
    return Range(batch.min + given.min, batch.opt + given.opt, batch.max + given.max)


def _example(tensor: GraphTensor, dims: Sequence[int | str]) -> str:
    """The option that gives the sizes of an input's dynamic dimensions."""
    sizes = "x".join(str(dim if isinstance(dim, int) else "N") for dim in dims)
    return f"--shape {tensor.name}:{sizes}:{sizes}:{sizes}"


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
