"""A model's inputs and outputs as its metadata tells them, and arrays that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from .errors import InvalidRequest
from .payloads import numpy_dtype
from .reading import text
from .transport import Json


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Of the tensor.
        dtype: Triton's name of the element type: FP32, UINT8, BYTES.
        shape: -1 where any size goes; the batch, where the model has one, is the first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype} {self.sizes}"

    @property
    def sizes(self) -> str:
        """The shape in words; ? where any size goes."""
        return f"[{', '.join('?' if size < 0 else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs: By name, in the model's order.
        outputs: By name, in the model's order.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def arrays(self, model: str, given: Mapping[str, Any], optional: frozenset[str]) -> dict[str, NDArray[Any]]:
        """The arrays to send.

        Args:
            model: For the errors.
            given: By input name. Arrays have to have the input's type; anything else is converted to it.
            optional: Names of inputs that may be left out.

        Raises:
            InvalidRequest: An input is unknown or missing, or does not fit; the message names it.
        """
        unknown = [name for name in given if name not in self.inputs]
        missing = [name for name in self.inputs if name not in given and name not in optional]
        if unknown or missing:
            found = ", ".join(f"'{name}'" for name in given) or "none"
            expected = ", ".join(str(spec) for spec in self.inputs.values())
            raise InvalidRequest(f"model '{model}' was given the inputs {found}: expected {expected}")
        return {name: fitting(self.inputs[name], value) for name, value in given.items()}

    def require_outputs(self, model: str, names: tuple[str, ...]) -> None:
        """Raises InvalidRequest for an output that the model does not have."""
        unknown = [name for name in names if name not in self.outputs]
        if unknown:
            known = ", ".join(str(spec) for spec in self.outputs.values())
            raise InvalidRequest(f"model '{model}' has no output '{unknown[0]}': it has {known}")


def read_signature(metadata: Json) -> Signature:
    """Reads Triton's model metadata of either protocol; gRPC writes numbers as text.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: It is not Triton's.
    """

    def spec(tensor: Json) -> TensorSpec:
        dtype = text(tensor["datatype"])
        numpy_dtype(dtype)
        return TensorSpec(text(tensor["name"]), dtype, tuple(map(int, tensor.get("shape", ()))))

    def specs(tensors: list[Json]) -> dict[str, TensorSpec]:
        return {found.name: found for found in map(spec, tensors)}

    found = Signature(specs(metadata.get("inputs", [])), specs(metadata.get("outputs", [])))
    if not (found.inputs or found.outputs):
        raise ValueError("a model's metadata without inputs and outputs")
    return found


def optional_inputs(config: Json) -> frozenset[str]:
    """Names of the inputs that the model's configuration calls optional."""
    return frozenset(text(tensor["name"]) for tensor in config.get("input", []) if tensor.get("optional"))


def fitting(spec: TensorSpec, value: Any) -> NDArray[Any]:
    """The array for an input.

    Args:
        spec: The input.
        value: An array of the input's type; or numbers, text, bytes, or lists of these. Of text and bytes for BYTES an
            array may have NumPy's own types as well.

    Raises:
        InvalidRequest: Another type, number of dimensions, or size of one.
    """
    array = _as_bytes(spec, value) if spec.dtype == "BYTES" else _of_type(spec, value)
    sizes = zip(array.shape, spec.shape, strict=False)
    if array.ndim != len(spec.shape) or any(found != size >= 0 for found, size in sizes):
        raise InvalidRequest(f"input {spec} was given {_described(array)}: expected shape {spec.sizes}")
    return array


def _of_type(spec: TensorSpec, value: Any) -> NDArray[Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        try:
            return np.asarray(value, triton_to_np_dtype(spec.dtype))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"input {spec} was given {type(value).__name__}: {error}") from None
    array = np.asarray(value)
    if np_to_triton_dtype(array.dtype) != spec.dtype:
        raise InvalidRequest(
            f"input {spec} was given {_described(array)}: expected {spec.dtype}, as NumPy "
            f"{np.dtype(triton_to_np_dtype(spec.dtype))}; convert it with astype"
        )
    return array


def _as_bytes(spec: TensorSpec, value: Any) -> NDArray[Any]:
    """An array of bytes objects. NumPy's own bytes would lose the zeros at their end."""
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.array(value, np.object_)
    if array.dtype.kind not in "OSU":
        raise InvalidRequest(f"input {spec} was given {_described(array)}: expected text or bytes")
    result = np.empty(array.shape, np.object_)
    for index, item in np.ndenumerate(array):
        if not isinstance(item, (bytes, str)):
            raise InvalidRequest(f"input {spec} was given a {type(item).__name__}: expected text or bytes")
        result[index] = item.encode() if isinstance(item, str) else bytes(item)
    return result


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"
