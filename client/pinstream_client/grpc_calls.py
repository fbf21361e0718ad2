"""Triton's gRPC calls, whoever waits for them: `grpc_transport` in a thread, `grpc_async` in an event loop."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import errors
from .address import Address
from .options import Options
from .transport import Deadline, InferRequest, Json, infer_tensors

# How long a server that answered UNAVAILABLE gets to show that it was itself that said so, and not the network.
LIVE_PROBE_S = 1.0
# What gRPC says of a connection that broke under a call; a probe over a new one may well find the server live.
_BROKEN = re.compile(r"Stream removed|Socket closed|Connection reset|Broken pipe|recvmsg:|sendmsg:|GOAWAY")


def channel_arguments(options: Options) -> list[tuple[str, int]]:
    """GRPC's own settings of a channel."""
    arguments = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Left alone, gRPC waits up to two minutes before it connects again: a server that is back must be seen sooner.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Otherwise two channels of one process to one server share a connection, and its state after a failure.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if options.connect_timeout is not None:
        # gRPC's name for the time that one connection attempt gets.
        arguments.append(("grpc.min_reconnect_backoff_ms", round(options.connect_timeout * 1000)))
    return arguments


def open_client(kind: Callable[..., Any], address: Address, options: Options) -> Any:
    """A client of tritonclient, for threads or for asyncio. Nothing is sent yet.

    Raises:
        InvalidURL: A TLS file cannot be read.
    """
    try:
        return kind(
            address.netloc,
            channel_args=channel_arguments(options),
            ssl=address.secure,
            root_certificates=options.tls.ca,
            certificate_chain=options.tls.cert,
            private_key=options.tls.key,
        )
    except OSError as error:
        raise errors.InvalidURL(f"cannot read the TLS file {error.filename}: {error.strerror or error}") from None


class GrpcCalls(ABC):
    """The methods of `Transport`, each handed to ``_call`` with what makes an answer of tritonclient's result."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self._options = options

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """See `Transport`."""
        try:
            inputs, outputs = infer_tensors(triton_grpc, request)
        except InferenceServerException as error:
            raise errors.InvalidRequest(errors.first_line(error.message())) from None
        arguments = {
            "inputs": inputs,
            "outputs": outputs,
            "model_version": request.version,
            "parameters": dict(request.parameters),
            "compression_algorithm": self._options.compression,
        }
        return self._infer(request, arguments, timeout)

    def server_ready(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(bool, timeout, "", "is_server_ready")

    def model_ready(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(bool, timeout, model, "is_model_ready", model)

    def model_metadata(self, model: str, timeout: float, version: str = "") -> Any:
        """See `Transport`."""
        return self._call(_as_it_is, timeout, model, "get_model_metadata", model, version, as_json=True)

    def model_config(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_config, timeout, model, "get_model_config", model, as_json=True)

    def repository_index(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_models, timeout, "", "get_model_repository_index", as_json=True)

    def statistics(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_as_it_is, timeout, "", "get_inference_statistics", as_json=True)

    def register_system_region(self, name: str, key: str, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_nothing, timeout, "", "register_system_shared_memory", name, key, nbytes)

    def unregister_system_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_nothing, timeout, "", "unregister_system_shared_memory", name)

    def register_cuda_region(self, name: str, handle: bytes, device: int, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_nothing, timeout, "", "register_cuda_shared_memory", name, handle, device, nbytes)

    def unregister_cuda_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(_nothing, timeout, "", "unregister_cuda_shared_memory", name)

    @abstractmethod
    def _infer(self, request: InferRequest, arguments: dict[str, Any], timeout: float) -> Any:
        """Runs ``infer`` of tritonclient."""

    @abstractmethod
    def _call(
        self, read: Callable[[Any], Any], timeout: float, model: str, method: str, *arguments: Any, **options: Any
    ) -> Any:
        """Calls a method of tritonclient's client, and reads its result with ``read``."""

    def _require_time(self, timeout: float) -> Deadline:
        if timeout <= 0:
            raise errors.deadline_exceeded(self.address, timeout)
        return Deadline(timeout)

    def _typed(self, error: Any, model: str, seconds: float) -> errors.PinstreamError:
        code = status_code(error)
        if code == "DEADLINE_EXCEEDED":
            return errors.deadline_exceeded(self.address, seconds)
        if code == "CANCELLED":
            return errors.cancelled(self.address)
        if code == "UNAVAILABLE" and _BROKEN.search(error.message()):
            return self._unreachable(error)
        return errors.from_status(code, error.message(), self.address, model)

    def _unreachable(self, error: Any) -> errors.ServerUnreachable:
        message = error.message()
        unknown = "errors resolving" in message
        reason = "the host name is not known" if unknown else message.strip().rpartition(": ")[2] or message
        # A certificate that is wrong now is wrong in a second as well.
        lasting = unknown or "CERTIFICATE" in message.upper()
        return errors.unreachable(self.address, reason, transient=not lasting)


def status_code(error: Any) -> str:
    """GRPC's name of the status that an error of tritonclient carries."""
    return str(error.status()).rpartition(".")[2]


def may_be_the_network(error: Any) -> bool:
    """Whether only a probe can tell: gRPC says UNAVAILABLE without a connection, Triton when it takes no request."""
    return status_code(error) == "UNAVAILABLE" and not errors.is_restriction(errors.first_line(error.message()))


def read_outputs(request: InferRequest) -> Callable[[Any], dict[str, Any]]:
    """Reads the outputs of a result: those asked for, or all there are."""

    def read(result: Any) -> dict[str, Any]:
        names = request.outputs or tuple(tensor.name for tensor in result.get_response().outputs)
        return {name: result.as_numpy(name) for name in names}

    return read


def _as_it_is(answer: Json) -> Json:
    return answer


def _config(answer: Json) -> Json:
    config: Json = answer["config"]
    return config


def _models(answer: Json) -> list[Json]:
    models: list[Json] = answer.get("models", [])
    return models


def _nothing(_: Any) -> None:
    return None
