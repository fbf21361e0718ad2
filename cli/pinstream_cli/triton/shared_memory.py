"""How much of /dev/shm a model repository needs, and why.

Triton's Python backend moves every tensor of every Python model through one region an instance. A region starts at
1 MiB, grows by 1 MiB at a time and never shrinks: sooner or later each holds its largest batch. Seen with Triton 2.51
and many clients: outputs once and inputs twice, since the next batch goes in before the stub has let go of the last.
An instance with EXECUTIONS has as many batches under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream.errors import PinstreamError
from pinstream.references import by_reference, referring
from pinstream.tensors import NUMPY_DTYPES, ModelSpec, TensorSpec
from pinstream_cli.triton.preflight import MIB, SHARED_MEMORY
from pinstream_cli.triton.repository import (
    PYTHON_BACKENDS,
    Model,
    ReadOnnx,
    RepositoryError,
    dtype_of,
    model_directories,
    read_model,
    read_onnx_here,
    spec_of,
)

# Triton's own defaults, shm-default-byte-size and shm-growth-byte-size.
REGION_BYTES = 1 << 20
GROWTH_BYTES = 1 << 20
# What no machine has.
MOST_BYTES = 1 << 60
# What a string counts as, unknown as its length is: about the file of one photograph.
STRING_BYTES = 256 << 10
# Of an instance of yolox_preprocess.
PLACES = 32
# Configuration types that are not TYPE_ and the name that tensors.py has.
_STRING = "STRING"

Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ModelMemory:
    """What one model needs.

    Attributes:
        name: The model.
        instances: Its instances, each with a region of its own.
        batch: Items of its largest batch.
        inputs: Bytes of one item in each of its inputs.
        outputs: Bytes of one item in each of its outputs.
        executions: Batches that an instance has under way at once.
        unknown: Its tensors with a dimension or a type that nothing tells; dimensions count as 1, tensors as nothing.
        left: Bytes of an item that it leaves in shared memory for the next step; 0 where it sends all through Triton.
    """

    name: str
    instances: int
    batch: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    unknown: tuple[str, ...] = ()
    executions: int = 1
    left: int = 0

    @property
    def needed(self) -> int:
        """Bytes of /dev/shm, growth and all."""
        both = ((self.executions + 1) * list(self.inputs.values())) + self.executions * list(self.outputs.values())
        tensors = [self.batch * n for n in both]
        large = sum(_grown(nbytes) for nbytes in tensors if nbytes > GROWTH_BYTES)
        small = _grown(sum(nbytes for nbytes in tensors if nbytes <= GROWTH_BYTES))
        return self.instances * (REGION_BYTES + large + small + GROWTH_BYTES)

    @property
    def places(self) -> str:
        """What the places may come to that it leaves items in, which are had where there is room."""
        most = self.instances * PLACES * self.left
        return (
            f"up to {self.instances} x {PLACES} x {_size(self.left)} = {_size(most)} more, each only where half of "
            f"{SHARED_MEMORY} stays free; what finds no place goes through Triton"
        )

    def __str__(self) -> str:
        times = f"{self.executions} x " if self.executions > 1 else ""
        tensors = [f"{self.executions + 1} x {name} {_size(nbytes)}" for name, nbytes in self.inputs.items()]
        tensors += [f"{times}{name} {_size(nbytes)}" for name, nbytes in self.outputs.items()]
        at_least = ", at least" if self.unknown else ""
        return (
            f"{self.name}: {self.instances} x ({self.batch} x ({' + '.join(tensors) or 0}) + "
            f"{_size(REGION_BYTES + GROWTH_BYTES)}) = {_size(self.needed)}{at_least}"
        )


def needs(repositories: Iterable[Path], gpus: int = 0, read_onnx: ReadOnnx = read_onnx_here) -> list[ModelMemory]:
    """What every Python model of some repositories needs; models that cannot be read are left out.

    Args:
        repositories: Model repositories.
        gpus: GPUs of this machine: an instance group for GPUs has its count on each.
        read_onnx: What ONNX files take and give; else this process opens them.
    """
    models = []
    for path in (path for repository in repositories for path in model_directories(repository)):
        try:
            models.append(read_model(path))
        except RepositoryError:
            continue
    specs = {model.path: _spec_or_none(model, read_onnx) for model in models}
    shapes = _shapes_of_all(models, specs)
    left = _left_by(models, specs)
    return [
        _memory(model, specs[model.path], shapes[model.name], gpus, left.get(model.name, 0))
        for model in models
        if model.config.backend in PYTHON_BACKENDS
    ]


def _left_by(models: Sequence[Model], specs: Mapping[Path, ModelSpec | None]) -> dict[str, int]:
    """By the step of an ensemble that leaves items in shared memory, bytes of one, as the step after it takes them."""
    taken = {
        (model.name, referring(tensor).name): tensor.item_bytes
        for model in models
        for tensor in _by_reference(model, specs[model.path])
    }
    left: dict[str, int] = {}
    for ensemble in models:
        steps = ensemble.config.ensemble_scheduling.step
        given_by = {name: step.model_name for step in steps for name in step.output_map.values()}
        for step in steps:
            for tensor, name in step.input_map.items():
                if (step.model_name, tensor) in taken and name in given_by:
                    giver = given_by[name]
                    left[giver] = max(left.get(giver, 0), taken[step.model_name, tensor])
    return left


def _memory(model: Model, spec: ModelSpec | None, shapes: Shapes, gpus: int, left: int) -> ModelMemory:
    item_bytes = {
        name: STRING_BYTES if dtype == _STRING else NUMPY_DTYPES[dtype].itemsize * math.prod(map(abs, shape))
        for name, (dtype, shape) in shapes.items()
    }
    unknown = tuple(name for name, (_, shape) in shapes.items() if -1 in shape)
    referring_to = map(referring, _by_reference(model, spec))
    named = {tensor.name for tensor in (*model.config.input, *(spec.inputs if spec else ()), *referring_to)}
    inputs = {name: nbytes for name, nbytes in item_bytes.items() if name in named}
    outputs = {name: nbytes for name, nbytes in item_bytes.items() if name not in named}
    instances, executions = instance_count(model, gpus), _executions(model)
    return ModelMemory(model.name, instances, _batch(model, spec), inputs, outputs, unknown, executions, left)


def _executions(model: Model) -> int:
    try:
        return model.options.executions
    except PinstreamError:  # what is wrong with its parameters is told elsewhere
        return 1


def instance_count(model: Model, gpus: int) -> int:
    """Instances of a model: those of each group, on each GPU where the group is for GPUs."""
    groups: Sequence[Any] = model.config.instance_group
    if not groups:
        return max(1, gpus)
    total = 0
    for group in groups:
        on_cpu = group.kind in (group.KIND_CPU, group.KIND_MODEL) or not gpus
        total += max(1, group.count) * (1 if on_cpu else len(group.gpus) or gpus)
    return total


def _batch(model: Model, spec: ModelSpec | None) -> int:
    configured: int = model.config.max_batch_size
    # Requests come in up to the configured size however they are split later.
    return configured or (spec.batch.largest if spec and spec.batch else 1)


def _spec_or_none(model: Model, read_onnx: ReadOnnx) -> ModelSpec | None:
    try:
        return spec_of(model, read_onnx)
    except (PinstreamError, OSError):
        return None


def _shapes_of_all(models: Sequence[Model], specs: Mapping[Path, ModelSpec | None]) -> dict[str, Shapes]:
    """Each model's tensors; what neither its configuration nor its file tells comes from its ensemble's neighbours."""
    shapes = {model.name: _own_shapes(model, specs[model.path]) for model in models}
    for ensemble in models:
        steps = ensemble.config.ensemble_scheduling.step
        known: Shapes = {}
        for step in steps:
            for tensor, name in (*step.input_map.items(), *step.output_map.items()):
                _learn(known, name, shapes.get(step.model_name, {}).get(tensor))
        for step in steps:
            for tensor, name in (*step.input_map.items(), *step.output_map.items()):
                if name in known and step.model_name in shapes:
                    _learn(shapes[step.model_name], tensor, known[name])
    return shapes


def _learn(known: Shapes, name: str, found: tuple[str, tuple[int, ...]] | None) -> None:
    if found is not None and (name not in known or -1 in known[name][1]):
        known[name] = found


def _own_shapes(model: Model, spec: ModelSpec | None) -> Shapes:
    tensors = (*spec.inputs, *spec.outputs) if spec else ()
    shapes: Shapes = {t.name: (_STRING if t.dtype == "BYTES" else t.dtype, _largest(t)) for t in tensors}
    for tensor in (*model.config.input, *model.config.output):
        dtype = dtype_of(tensor)
        if tensor.name not in shapes and (name := dtype.removeprefix("TYPE_")) in {*NUMPY_DTYPES, _STRING}:
            shapes[tensor.name] = (name, tuple(tensor.dims))
    for tensor in _by_reference(model, spec):
        # Where there is no room for it elsewhere, its bytes come through Triton all the same.
        del shapes[tensor.name]
        shapes[referring(tensor).name] = ("UINT8", (tensor.item_bytes,))
    return shapes


def _by_reference(model: Model, spec: ModelSpec | None) -> Sequence[TensorSpec]:
    try:
        return by_reference(model.options.by_reference, spec) if spec else ()
    except PinstreamError:  # what is wrong with its parameters is told elsewhere
        return ()


def _largest(tensor: Any) -> tuple[int, ...]:
    """The largest item shape that a plan takes; the shape itself where nothing bounds it."""
    largest: tuple[int, ...] = max((high for _, high in tensor.bounds), key=math.prod, default=tensor.shape)
    return largest


def _grown(nbytes: int) -> int:
    return -(-nbytes // GROWTH_BYTES) * GROWTH_BYTES


def _size(nbytes: int) -> str:
    # Of dims that are wrong, whose product may have more digits than a float holds.
    if nbytes >= MOST_BYTES:
        return "over 1 EiB"
    for unit, name in ((MIB, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} B"
