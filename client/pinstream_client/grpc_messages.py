"""Triton's gRPC messages of inference, from a request and to arrays."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from .payloads import MOST_ELEMENTS, from_bytes, require_free, to_bytes, told_timeout, triton_dtype
from .transport import InferRequest, SharedTensor


def infer_message(request: InferRequest, timeout: float) -> Any:
    """The message ``ModelInferRequest`` of a request that is waited for so many seconds.

    Raises:
        InvalidRequest: An array or a parameter that Triton cannot be sent.
    """
    message = pb.ModelInferRequest(model_name=request.model, model_version=request.version)
    for name, value in request.inputs.items():
        if isinstance(value, SharedTensor):
            tensor = message.inputs.add(name=name, datatype=value.dtype, shape=value.shape)
            tensor.parameters["shared_memory_region"].string_param = value.region
            tensor.parameters["shared_memory_byte_size"].int64_param = value.nbytes
        else:
            message.inputs.add(name=name, datatype=triton_dtype(value.dtype), shape=value.shape)
            message.raw_input_contents.append(to_bytes(value))
    for name in request.outputs:
        message.outputs.add(name=name)
    if request.parameters:
        require_free(request.parameters)
        for name, chosen in request.parameters.items():
            _set(message.parameters[name], chosen)
    message.parameters["timeout"].int64_param = told_timeout(timeout)
    return message


def read_outputs(message: Any) -> dict[str, NDArray[Any]]:
    """The outputs of a ``ModelInferResponse`` by name. The arrays are read-only.

    Raises:
        ValueError, struct.error: What is in it does not fit together.
    """
    if len(message.outputs) != len(message.raw_output_contents):
        raise ValueError(f"{len(message.outputs)} outputs, and the bytes of {len(message.raw_output_contents)}")
    arrays: dict[str, NDArray[Any]] = {}
    left = MOST_ELEMENTS
    for output, data in zip(message.outputs, message.raw_output_contents, strict=True):
        array = arrays[output.name] = from_bytes(data, output.datatype, output.shape, left)
        left -= array.size if output.datatype == "BYTES" else 0
    return arrays


def _set(parameter: Any, value: bool | int | float | str) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
