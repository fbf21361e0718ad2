"""Triton's HTTP bodies of inference, from a request and to arrays: a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequest
from .payloads import from_bytes, numpy_dtype, require_free, to_bytes, told_timeout, triton_dtype
from .transport import InferRequest, SharedTensor


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


def read_outputs(body: bytes, header_length: int | None) -> dict[str, NDArray[Any]]:
    """The outputs of an answer by name.

    Args:
        body: Of the answer, decompressed.
        header_length: How many bytes of it are JSON; None where all are.

    Raises:
        ValueError, KeyError, TypeError: The body is not Triton's.
    """
    at = len(body) if header_length is None else header_length
    arrays = {}
    for output in json.loads(body[:at])["outputs"]:
        shape = tuple(output["shape"])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], numpy_dtype(output["datatype"])).reshape(shape)
        else:
            # A copy, so that numbers lie where processors like them.
            array = from_bytes(body[at : at + size], output["datatype"], shape)
            at += size
        arrays[output["name"]] = array
    return arrays
