"""Arrays as the bytes that Triton's protocols carry, and back.

tritonclient wraps each tensor of each request in objects of its own and looks each output up anew; that costs a client
as much time as all else that it does. Here each tensor is touched once.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import (
    TRITON_RESERVED_REQUEST_PARAMS,
    TRITON_RESERVED_REQUEST_PARAMS_PREFIX,
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from .errors import InvalidRequest

_LENGTH = struct.Struct("<I")  # before each element of BYTES
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
    """NumPy's element type for Triton's name."""
    return np.dtype(triton_to_np_dtype(name))


def to_bytes(array: NDArray[Any]) -> bytes:
    """The elements in row-major order; those of BYTES each after its length. Text is sent as UTF-8."""
    if array.dtype.kind not in "OS":
        return array.tobytes()
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        element = item if isinstance(item, bytes) else str(item).encode()
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def from_bytes(data: Any, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array over ``data``, of bytes or a view of them; that of BYTES is a copy.

    Raises:
        ValueError: The data is not of that shape.
    """
    if dtype == "BYTES":
        return np.asarray(deserialize_bytes_tensor(data), np.object_).reshape(shape)
    return np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)


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
