"""Triton's HTTP bodies of inference, from a request and to arrays: a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
from typing import Any

from numpy.typing import NDArray

from .errors import InvalidRequest
from .payloads import MOST_ELEMENTS, from_bytes, from_json, require_free, to_bytes, told_timeout, triton_dtype
from .reading import text
from .transport import InferRequest, Json, SharedTensor


def infer_body(request: InferRequest, timeout: float) -> tuple[bytes, int]:
    """The body of a request that is waited for so many seconds, and how many bytes of it are the JSON header.

    Raises:
        InvalidRequest: An array or a parameter that Triton cannot be sent.
    """
    inputs, data = [], []
    for name, value in request.inputs.items():
        if isinstance(value, SharedTensor):
            where = {"shared_memory_region": value.region, "shared_memory_byte_size": value.nbytes}
            inputs.append({"name": name, "shape": value.shape, "datatype": value.dtype, "parameters": where})
        else:
            data.append(to_bytes(value))
            size = {"binary_data_size": len(data[-1])}
            datatype = triton_dtype(value.dtype)
            inputs.append({"name": name, "shape": value.shape, "datatype": datatype, "parameters": size})
    require_free(request.parameters)
    header: dict[str, Any] = {"inputs": inputs, "parameters": {**request.parameters, "timeout": told_timeout(timeout)}}
    if request.outputs:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    else:
        header["parameters"]["binary_data_output"] = True
    try:
        text = json.dumps(header, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidRequest(
            f"a request parameter cannot be sent over HTTP: {error}; expected finite numbers"
        ) from None
    return b"".join((text, *data)), len(text)


def read_outputs(header: Json, data: memoryview) -> dict[str, NDArray[Any]]:
    """The outputs of an answer by name.

    Args:
        header: The JSON of its body.
        data: What comes behind it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, struct.error: They are not Triton's.
    """
    arrays: dict[str, NDArray[Any]] = {}
    at, left = 0, MOST_ELEMENTS
    for output in header["outputs"]:
        name, dtype, shape = text(output["name"]), output["datatype"], output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[name] = from_json(output["data"], dtype, shape)
            continue
        end = at + size
        if not at <= end <= len(data):
            raise ValueError(f"binary_data_size {size} of output '{name}': there are {len(data) - at} bytes")
        # A copy, so that numbers lie where processors like them.
        arrays[name] = from_bytes(bytes(data[at:end]), dtype, shape, left)
        left -= arrays[name].size if dtype == "BYTES" else 0
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the last output")
    return arrays
