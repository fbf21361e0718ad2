"""One request to one server, whatever the protocol.

`Transport` and its twin for asyncio are the seam between what is asked and how it travels: each protocol is a few
modules behind it, and each turns every failure into a `PinstreamError` within the timeout it is given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from numpy.typing import NDArray

from . import errors
from .address import Address
from .options import Options

if TYPE_CHECKING:
    from .cancellation import Cancellation

Json = dict[str, Any]
Outputs: TypeAlias = "dict[str, NDArray[Any]]"
Parameter: TypeAlias = "bool | int | float | str"


@dataclass(frozen=True)
class SharedTensor:
    """An input that the server reads out of a registered region of shared memory.

    Attributes:
        region: The name under which the region is registered.
        dtype: Triton's name of the element type.
        shape: Of the tensor.
        nbytes: Of the tensor, from the region's beginning.
    """

    region: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class InferRequest:
    """A request to any model.

    Attributes:
        model: Its name.
        inputs: Arrays, or where they lie, by input name.
        outputs: Names of the wanted outputs; empty for all.
        parameters: Request parameters.
        version: Of the model; "" leaves it to the server.
        cancellation: Gives the request up from another thread. Tasks of asyncio are cancelled themselves.
    """

    model: str
    inputs: Mapping[str, NDArray[Any] | SharedTensor]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    version: str = ""
    cancellation: Cancellation | None = None

    def require_answered(self, outputs: Mapping[str, Any], address: Address) -> None:
        """Raises ServerError where the server at ``address`` gave fewer outputs than were asked for by their names."""
        missing = [name for name in self.outputs if name not in outputs]
        if missing:
            found = ", ".join(f"'{name}'" for name in outputs) or "none"
            raise errors.unusable(address, self.model, f"no output '{missing[0]}': found {found}")


class Transport(Protocol):
    """A connection to one server. Usable from several threads at once.

    Every ``timeout`` is in seconds and bounds the whole call: connecting, sending, waiting, receiving.

    Raises:
        PinstreamError: All methods raise its subclasses and nothing else.
    """

    address: Address

    def infer(self, request: InferRequest, timeout: float) -> dict[str, NDArray[Any]]:
        """Runs the model and returns its outputs by name."""

    def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the model takes requests; False as well for a model that the server does not have."""

    def model_metadata(self, model: str, timeout: float, version: str = "") -> Json:
        """Inputs and outputs of the model."""

    def model_config(self, model: str, timeout: float) -> Json:
        """The model's configuration as the server completed it."""

    def repository_index(self, timeout: float) -> list[Json]:
        """The models that the server knows: name, version, state, reason."""

    def statistics(self, timeout: float) -> Json:
        """Triton's inference statistics of all models."""

    def register_system_region(self, name: str, key: str, nbytes: int, timeout: float) -> None:
        """Has the server map a region of system shared memory, ``/dev/shm/<key>``."""

    def unregister_system_region(self, name: str, timeout: float) -> None:
        """Has the server forget it; an unknown one is no error."""

    def register_cuda_region(self, name: str, handle: bytes, device: int, nbytes: int, timeout: float) -> None:
        """Has the server open a region of GPU memory by its base64 handle."""

    def unregister_cuda_region(self, name: str, timeout: float) -> None:
        """Has the server forget it; an unknown one is no error."""

    def close(self) -> None:
        """Closes the connections. Further calls fail."""

    def abandon(self) -> None:
        """Lets the connections go without a word on the network: after a fork they are the parent's."""


class AsyncTransport(Protocol):
    """`Transport` for asyncio: the same methods as coroutines, for the event loop that it was made in."""

    address: Address

    async def infer(self, request: InferRequest, timeout: float) -> dict[str, NDArray[Any]]:
        """See `Transport`; the rest of its methods are here as well."""

    async def close(self) -> None:
        """Closes the connections. Further calls fail."""


class Deadline:
    """What is left of one timeout over several steps."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; negative when the time is over."""
        return self._end - time.monotonic()


# Imported where they are used, because each protocol's library is heavy, and nobody needs all.


def connect(address: Address, options: Options) -> Transport:
    """Opens the transport of the address's protocol. Nothing is sent yet."""
    if address.protocol == "http":
        from .http_transport import HttpTransport

        return HttpTransport(address, options)
    from .grpc_transport import GrpcTransport

    return GrpcTransport(address, options)


def connect_async(address: Address, options: Options) -> AsyncTransport:
    """The same for the running event loop."""
    if address.protocol == "http":
        from .http_async import AsyncHttpTransport

        return AsyncHttpTransport(address, options)
    from .grpc_async import AsyncGrpcTransport

    return AsyncGrpcTransport(address, options)
