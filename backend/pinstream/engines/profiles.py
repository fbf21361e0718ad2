"""What a plan says of itself, read from an engine or from the sidecar, and the model it makes. No TensorRT, no CUDA.

A model is one plan with a dynamic batch, or several plans of one batch size each; every plan has one or more
optimisation profiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pinstream.errors import ConfigError
from pinstream.options import Options
from pinstream.tensors import BatchSizes, ModelSpec, Profile, Shape, TensorSpec, steps


@dataclass(frozen=True)
class Range:
    """The shapes of one input that one optimisation profile takes: from `min` to `max`, tuned for `opt`."""

    min: Shape
    opt: Shape
    max: Shape

    def fits(self, shape: Shape) -> bool:
        """Whether `shape` lies inside."""
        return len(shape) == len(self.min) and all(
            low <= d <= high for low, d, high in zip(self.min, shape, self.max, strict=True)
        )

    def distance(self, shape: Shape) -> int:
        """How far `shape` is from what the profile is tuned for."""
        return sum(abs(d - o) for d, o in zip(shape, self.opt, strict=True))


@dataclass(frozen=True)
class PlanTensor:
    """One I/O tensor of a plan.

    Attributes:
        name: The engine's name for it.
        dtype: Triton's data type without TYPE_.
        shape: As the engine has it, batch dimension included, -1 for a dynamic dimension.
        ranges: For an input, one Range a profile, of its shapes or, for a shape tensor, of its values; empty for an
            output.
        host: A shape tensor: its values are read on the host.
    """

    name: str
    dtype: str
    shape: Shape
    ranges: tuple[Range, ...] = ()
    host: bool = False


@dataclass(frozen=True)
class PlanInfo:
    """What one plan file holds.

    Attributes:
        file: Its name, beside the sidecar.
        inputs: In the engine's order.
        outputs: In the engine's order.
        sha256: Of the file, in hexadecimal; empty where it was read from the engine.
    """

    file: str
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the sidecar's section `plans` has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PlanInfo:
        """Read an entry of the sidecar's section `plans`.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        return cls(
            str(entry["file"]),
            tuple(_tensor(t) for t in entry["inputs"]),
            tuple(_tensor(t) for t in entry["outputs"]),
            str(entry.get("sha256", "")),
        )


def _tensor(entry: Mapping[str, Any]) -> PlanTensor:
    ranges = tuple(Range(*(tuple(map(int, r[k])) for k in ("min", "opt", "max"))) for r in entry.get("ranges", ()))
    shape, host = tuple(map(int, entry["shape"])), bool(entry.get("host", False))
    for r in ranges:
        if not (r.fits(r.opt) and r.fits(r.max)) or (not host and len(r.min) != len(shape)):
            raise ValueError(f"{entry['name']} of shape {list(shape)} has a profile of {r.min}, {r.opt} and {r.max}")
    return PlanTensor(str(entry["name"]), str(entry["dtype"]), shape, ranges, host)


def model_spec(plans: Sequence[PlanInfo], options: Options) -> ModelSpec:
    """The model that `plans` make together.

    Args:
        plans: One dynamic plan, or one plan a batch size; all of one network.
        options: instance_group.profile leaves only what these profiles take. BUCKETS narrows the batch sizes, and makes
            a dynamic plan run in these only; graph_spec makes one whose items are all of one shape, which graphs are
            of, run in its sizes and the largest.

    Raises:
        ConfigError: The plans are not of one network, or BUCKETS or instance_group.profile asks for what they do not
            have.
    """
    _check_one_network(plans)
    plans = [_narrowed(plan, options.profiles) for plan in plans]
    batch = None if _configured_unbatched(plans[0], options) else _batch_sizes(plans, options)
    drop = 1 if batch else 0
    inputs = tuple(_input_spec([plan.inputs[i] for plan in plans], drop) for i in range(len(plans[0].inputs)))
    outputs = tuple(TensorSpec(t.name, t.dtype, t.shape[drop:]) for t in plans[0].outputs)
    if batch and any(not tensor.is_static for tensor in inputs):
        batch = replace(batch, profiles=_profiles(plans))
    return ModelSpec(inputs, outputs, batch)


def why_no_graphs(plans: Sequence[PlanInfo], spec: ModelSpec) -> str:
    """Why the batches of these plans cannot be CUDA graphs, and what to do; empty where nothing here speaks against it.

    Of a dynamic plan only a context tells an output that depends on the data from one whose shape follows from inputs.
    """
    # A graph is of one shape: where others may come as well, it would seldom be of use.
    if varying := [str(tensor) for tensor in spec.inputs if not tensor.is_static]:
        return (
            f"a graph is of one shape, and {', '.join(varying)} varies beyond the batch; build the plan with --shape "
            "of one size"
        )
    if values := [tensor.name for tensor in plans[0].inputs if tensor.host]:
        return f"a graph is of one shape, and the values of {', '.join(values)} are shapes; make them constants"
    for plan in plans:
        found = [tensor.name for tensor in plan.outputs if -1 in tensor.shape]
        if found and all(-1 not in tensor.shape for tensor in plan.inputs):
            return f"a graph is of one shape, and that of {', '.join(found)} depends on the data; pad it in the network"
    return ""


def _profiles(plans: Sequence[PlanInfo]) -> tuple[Profile, ...]:
    """What each profile takes, where they differ in the batch."""
    found = [
        Profile(*batch, tuple((t.name, t.ranges[i].min[1:], t.ranges[i].max[1:]) for t in plan.inputs))
        for plan in plans
        for i, batch in enumerate(_plan_batches(plan))
    ]
    return tuple(found) if len({(profile.smallest, profile.largest) for profile in found}) > 1 else ()


def _check_one_network(plans: Sequence[PlanInfo]) -> None:
    def signature(plan: PlanInfo) -> list[tuple[str, str]]:
        return [(t.name, t.dtype) for t in (*plan.inputs, *plan.outputs)]

    for plan in plans[1:]:
        if signature(plan) != signature(plans[0]):
            raise ConfigError(
                f"{plan.file} has tensors {signature(plan)}, {plans[0].file} has {signature(plans[0])}; "
                "the plans of one model must come from one network: build them again with `pinstream build`"
            )


def _narrowed(plan: PlanInfo, profiles: Sequence[int]) -> PlanInfo:
    """The plan with only these profiles; all of them where none are named."""
    if not profiles:
        return plan
    count = max(len(tensor.ranges) for tensor in plan.inputs)
    if max(profiles) >= count:
        raise ConfigError(
            f"instance_group.profile is {max(profiles)}, and {plan.file} has profiles 0 to {count - 1}; change it"
        )
    inputs = (replace(t, ranges=tuple(t.ranges[i] for i in profiles)) for t in plan.inputs)
    return replace(plan, inputs=tuple(inputs))


def _configured_unbatched(plan: PlanInfo, options: Options) -> bool:
    return bool({(t.name, len(t.shape)) for t in plan.inputs} & set(options.unbatched_inputs))


def _input_spec(tensors: Sequence[PlanTensor], drop: int) -> TensorSpec:
    first = tensors[0]
    item = first.shape[drop:]
    bounds = tuple(dict.fromkeys((r.min[drop:], r.max[drop:]) for t in tensors for r in t.ranges))
    return TensorSpec(first.name, first.dtype, item, bounds if -1 in item else ())


def _batch_sizes(plans: Sequence[PlanInfo], options: Options) -> BatchSizes | None:
    found = [_plan_batches(plan) for plan in plans]
    if not all(found):
        if len(plans) > 1:
            raise ConfigError(f"{', '.join(p.file for p in plans)} have no common batch dimension; serve one of them")
        return None
    sizes = sorted({interval for intervals in found for interval in intervals})
    largest = max(high for _, high in sizes)
    if options.buckets:
        missing = [n for n in options.buckets if not any(low <= n <= high for low, high in sizes)]
        if missing:
            raise ConfigError(
                f"BUCKETS asks for batch sizes {', '.join(map(str, missing))}, which no plan has "
                f"(there are {_describe(sizes)}); build them with `pinstream build --batch-sizes`, or change BUCKETS"
            )
        return BatchSizes(options.buckets)
    if _from_one_on(sizes) and len(plans) == 1 and largest > 1:
        # graph_spec names sizes worth a graph. What lies between is padded to them or split, and the largest stays.
        graphs = {size for size in options.graph_batch_sizes if size < largest}
        of_one_shape = all(-1 not in tensor.shape[1:] for tensor in plans[0].inputs)
        if graphs and of_one_shape and options.cuda_graphs != "off":
            return BatchSizes(tuple(sorted({*graphs, largest})))
        return BatchSizes((largest,), exact=True)
    return BatchSizes(tuple(sorted({size for low, high in sizes for size in steps(low, high)})))


def _from_one_on(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether every batch from 1 to the largest lies in one of these."""
    reached = 0
    for low, high in sorted(sizes):
        if low > reached + 1:
            return False
        reached = max(reached, high)
    return True


def _describe(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{low} to {high}" if low < high else str(low) for low, high in sorted(sizes))


def _plan_batches(plan: PlanInfo) -> list[tuple[int, int]]:
    """The smallest and largest batch of each of a plan's profiles; none where its tensors share no first dimension."""
    if any(t.host or not t.shape for t in (*plan.inputs, *plan.outputs)) or not plan.inputs:
        return []
    if len({t.shape[0] for t in (*plan.inputs, *plan.outputs)}) > 1:
        return []
    found: list[tuple[int, int]] = []
    for ranges in zip(*(t.ranges for t in plan.inputs), strict=True):
        batches = {(r.min[0], r.max[0]) for r in ranges}
        if len(batches) > 1:
            return []
        found += batches
    return found
