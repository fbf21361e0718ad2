"""What a model takes and gives, as far as its configuration and its files tell without running it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pinstream.autocomplete import max_batch_size
from pinstream.errors import ConfigError, PinstreamError
from pinstream.references import by_reference, referring
from pinstream.tensors import NUMPY_DTYPES, ModelSpec
from pinstream_cli.doctor.backends import ENSEMBLE, OURS, PYTHON, backend_of
from pinstream_cli.doctor.steps import python_file
from pinstream_cli.triton.repository import Model, ReadOnnx, dtype_of, spec_of

# What lets a model in Python name tensors that its configuration has not.
_COMPLETES = b"auto_complete_config"
# Before each string of a file.
STRING_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        dtype: As config.pbtxt writes it: `TYPE_FP32`.
        dims: Of one item; -1 for a dimension of any size.
        optional: Whether requests may leave it out.
    """

    dtype: str
    dims: tuple[int, ...]
    optional: bool = False

    def takes(self, other: Tensor) -> bool:
        """Whether type and shape agree, -1 on either side agreeing with anything."""
        return self.dtype == other.dtype and agree(self.dims, other.dims)

    @property
    def least_bytes(self) -> int:
        """Bytes of the smallest item: a dimension of any size counts as 1, a string as the number before it."""
        dtype = NUMPY_DTYPES.get(self.dtype.removeprefix("TYPE_"))
        of_one = dtype.itemsize if dtype else STRING_LENGTH_BYTES if self.dtype == "TYPE_STRING" else 0
        return of_one * math.prod(map(abs, self.dims))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.dims)}"


@dataclass(frozen=True)
class Signature:
    """A model's tensors.

    Attributes:
        inputs: By name.
        outputs: By name.
        max_batch_size: 0 without batching.
        complete: Whether these are all; else loading the model may add some.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch_size: int
    complete: bool


def agree(dims: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Whether two shapes agree, -1 on either side agreeing with anything."""
    return len(dims) == len(others) and all(a == b or -1 in (a, b) for a, b in zip(dims, others, strict=True))


def signature_of(model: Model, read_onnx: ReadOnnx) -> Signature:
    """What a model takes and gives. What is wrong with its files is left to whoever looks at these.

    Args:
        model: The model.
        read_onnx: What ONNX files take and give.
    """
    inputs, outputs = _configured(model, model.config.input), _configured(model, model.config.output)
    batch, complete = model.config.max_batch_size, _is_complete(model)
    if backend_of(model.config) == OURS:
        try:
            spec = spec_of(model, read_onnx)
        except (PinstreamError, OSError):
            spec = None
        if spec is not None:
            complete = True
            inputs = _inputs(model, spec) | inputs
            outputs = {t.name: Tensor(t.config_dtype, t.shape) for t in spec.outputs} | outputs
            batch = max_batch_size(model.as_json(), spec)
    return Signature(inputs, outputs, batch, complete)


def _inputs(model: Model, spec: ModelSpec) -> dict[str, Tensor]:
    """What a model of ours takes: its own inputs, and those that may refer to one."""
    try:
        referred = by_reference(model.options.by_reference, spec)
    except ConfigError:  # told where its configuration is looked at
        referred = ()
    own = {t.name: Tensor(t.config_dtype, t.shape, t in referred) for t in spec.inputs}
    return own | {t.name: Tensor(t.config_dtype, t.shape, optional=True) for t in map(referring, referred)}


def _configured(model: Model, tensors: Iterable[Any]) -> dict[str, Tensor]:
    # Triton compares an ensemble's tensors as they are inside.
    inside = backend_of(model.config) == ENSEMBLE
    return {
        tensor.name: Tensor(
            dtype_of(tensor),
            tuple(tensor.reshape.shape if inside and tensor.HasField("reshape") else tensor.dims),
            getattr(tensor, "optional", False),
        )
        for tensor in tensors
    }


def _is_complete(model: Model) -> bool:
    backend = backend_of(model.config)
    if backend == PYTHON:
        try:
            files = [python_file(model, version) for version in model.versions]
            return all(file.is_file() and _COMPLETES not in file.read_bytes() for file in files)
        except OSError:
            return False
    return backend == ENSEMBLE
