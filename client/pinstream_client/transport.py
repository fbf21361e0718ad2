"""One request to one server, whatever the protocol.

`Transport` is the seam between what is asked (`yolox.py`, `detector.py`) and how it travels: each protocol is one
module behind it, and each turns every failure into a `PinstreamError` within the timeout it is given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from .address import Address

Json = dict[str, Any]
Parameter = bool | int | float | str


@dataclass(frozen=True)
class InferRequest:
    """A request to any model: arrays in, the names of the wanted outputs, request parameters."""

    model: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


class Transport(Protocol):
    """A connection to one server. Usable from several threads at once.

    Every ``timeout`` is in seconds and bounds the whole call: connecting, sending, waiting, receiving.

    Raises:
        PinstreamError: All methods raise its subclasses and nothing else.
    """

    address: Address

    def infer(self, request: InferRequest, timeout: float) -> dict[str, NDArray[Any]]:
        """Runs the model and returns its outputs by name."""

    def server_ready(self, timeout: float) -> bool:
        """Whether the server says that it is ready."""

    def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the model takes requests; False as well for a model that the server does not have."""

    def model_metadata(self, model: str, timeout: float) -> Json:
        """Inputs and outputs of the model."""

    def model_config(self, model: str, timeout: float) -> Json:
        """The model's configuration as the server completed it."""

    def repository_index(self, timeout: float) -> list[Json]:
        """The models that the server knows: name, version, state, reason."""

    def statistics(self, timeout: float) -> Json:
        """Triton's inference statistics of all models."""

    def close(self) -> None:
        """Closes the connections. Further calls fail."""


class Deadline:
    """What is left of one timeout over several steps."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; negative when the time is over."""
        return self._end - time.monotonic()


def connect(address: Address) -> Transport:
    """Opens the transport of the address's protocol. Nothing is sent yet."""
    # Imported here because each protocol's library is heavy, and nobody needs both.
    if address.protocol == "http":
        from .http_transport import HttpTransport

        return HttpTransport(address)
    from .grpc_transport import GrpcTransport

    return GrpcTransport(address)


def infer_tensors(triton: ModuleType, request: InferRequest) -> tuple[list[Any], list[Any]]:
    """The request's inputs and requested outputs as objects of ``tritonclient.grpc`` or ``tritonclient.http``."""
    inputs = []
    for name, array in request.inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs, [triton.InferRequestedOutput(name) for name in request.outputs]
