"""Arrays as the bytes that Triton's protocols carry, and back.

tritonclient wraps each tensor of each request in objects of its own and looks each output up anew; that costs a client
as much time as all else that it does. Here each tensor is touched once.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import (
    TRITON_RESERVED_REQUEST_PARAMS,
    TRITON_RESERVED_REQUEST_PARAMS_PREFIX,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from .errors import InvalidRequest

_LENGTH = struct.Struct("<I")  # before each element of BYTES
# Reading so many elements of BYTES takes two seconds, whatever is in them, and no deadline ends it.
MOST_ELEMENTS = 1 << 22
_MOST_DIMENSIONS = 64  # that NumPy has; the product of a million sizes takes minutes
# Kinds of NumPy's types that JSON's values may have for each kind of element; "V" is that of BF16.
_IN_JSON = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "V": "iuf", "O": "O"}
LONGEST_TOLD_S = 365 * 86400.0  # a timeout may be infinite here, and is a number of microseconds there
# By so much, and by no more than this share, less is told than is waited. A call that its client gives up just as it is
# refused may end Triton 2.51 (docs/errors.md): with the same time on both sides that was one in some two thousand.
# Triton sees it when the request's turn comes, so more is safer; and who leaves the queue that late is hardly answered.
TOLD_EARLIER_S, MOST_EARLIER = 0.1, 0.2


@functools.cache
def triton_dtype(dtype: np.dtype[Any]) -> str:
    """Triton's name of an element type.

    Raises:
        InvalidRequest: It has none.
    """
    name: str | None = np_to_triton_dtype(dtype)
    if name is None:
        raise InvalidRequest(f"an array of {dtype} cannot be sent: Triton has no such element type; convert it")
    return name


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's element type for Triton's name.

    Raises:
        ValueError: Triton has none of that name.
    """
    dtype = triton_to_np_dtype(name)
    if dtype is None:  # which NumPy would take for FP64
        raise ValueError(f"element type {name!r}, which Triton does not have")
    return np.dtype(dtype)


def to_bytes(array: NDArray[Any]) -> bytes:
    """The elements in row-major order; those of BYTES each after its length. Text is sent as UTF-8."""
    if array.dtype.kind not in "OS":
        return array.tobytes()
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        element = item if isinstance(item, bytes) else str(item).encode()
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def from_bytes(data: bytes, dtype: str, sizes: Sequence[int], most: int = MOST_ELEMENTS) -> NDArray[Any]:
    """An array over ``data``; that of BYTES is a copy, of ``most`` elements at most.

    Raises:
        ValueError, TypeError, struct.error: The data is not of that type and shape, or these are none.
    """
    shape = _shape(sizes)
    if dtype == "BYTES":
        return np.array(_elements(data, math.prod(shape), most), np.object_).reshape(shape)
    return np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)


def from_json(values: Any, dtype: str, sizes: Sequence[int]) -> NDArray[Any]:
    """An array of JSON's numbers, or of its texts for BYTES.

    Raises:
        ValueError, TypeError: They are not of that type and shape, or these are none.
    """
    kind = numpy_dtype(dtype)
    found = np.array(values, np.object_ if kind == np.object_ else None).reshape(_shape(sizes))
    if found.size and found.dtype.kind not in _IN_JSON[kind.kind]:
        raise ValueError(f"values that are not {dtype}")
    if kind == np.object_ and not all(isinstance(item, str) for item in found.ravel()):
        raise ValueError("BYTES that are not text")
    if found.size and kind.kind in "iu":
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        if not least <= int(found.min()) <= int(found.max()) <= most:
            raise ValueError(f"numbers from {found.min()} to {found.max()}: {dtype} has {least} to {most}")
    with np.errstate(over="ignore"):  # a number that is infinite as FP16
        return found.astype(kind)


def _shape(sizes: Sequence[int]) -> tuple[int, ...]:
    if len(sizes) > _MOST_DIMENSIONS:
        raise ValueError(f"a shape of {len(sizes)} dimensions: expected at most {_MOST_DIMENSIONS}")
    shape = tuple(sizes)
    if min(shape, default=0) < 0:  # which to NumPy would be any size
        raise ValueError(f"shape {list(shape)}: expected sizes of 0 or more")
    return shape


def _elements(data: bytes, count: int, most: int) -> list[bytes]:
    if count > most:
        raise ValueError(f"{count} more elements of BYTES: expected at most {MOST_ELEMENTS} in all")
    if count * _LENGTH.size > len(data):
        raise ValueError(f"{count} elements of BYTES in {len(data)} bytes")
    elements, at = [], 0
    for _ in range(count):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0]
        elements.append(data[start:at])
    if at != len(data):
        raise ValueError(f"{count} elements of BYTES that end at {at} of {len(data)} bytes")
    return elements


def told_timeout(seconds: float) -> int:
    """Triton's own request parameter ``timeout``, in microseconds, of a request that is waited for so many seconds.

    What has waited for so long in the queue of a model whose configuration has ``allow_timeout_override`` is refused
    instead of computed. Nobody else tells Triton: not over HTTP that a client has left, and of an ensemble's request
    over gRPC not before the first step is done.
    """
    told = max(seconds - TOLD_EARLIER_S, seconds * (1 - MOST_EARLIER))
    return max(1, int(min(told, LONGEST_TOLD_S) * 1e6))


def require_free(parameters: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for request parameters that mean something to Triton itself, or that it cannot carry."""
    for name, value in parameters.items():
        if name in TRITON_RESERVED_REQUEST_PARAMS or name.startswith(TRITON_RESERVED_REQUEST_PARAMS_PREFIX):
            raise InvalidRequest(f"request parameter '{name}' is Triton's own: give yours another name")
        if not isinstance(value, (bool, int, float, str)):
            kind = type(value).__name__
            raise InvalidRequest(f"request parameter '{name}' is a {kind}: expected a bool, an int, a float or text")
