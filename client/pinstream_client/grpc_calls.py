"""Triton's gRPC calls, whoever waits for them: `grpc_transport` in a thread, `grpc_async` in an event loop.

tritonclient gives the messages and the stub; its gRPC clients, which cost much of a call's CPU time, are left aside.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from . import errors
from .address import Address
from .grpc_messages import infer_message, read_outputs
from .options import TLS, File, Options
from .reading import Reading
from .transport import Deadline, InferRequest, Json

# How long a server that answered UNAVAILABLE gets to show that it was itself that said so, and not the network.
LIVE_PROBE_S = 1.0
# The largest message there is: gRPC has 31 bits for it, as protobuf has.
LARGEST_MESSAGE = (1 << 31) - 1
# What gRPC says of a connection that broke under a call; a probe over a new one may well find the server live.
_BROKEN = re.compile(r"Stream removed|Socket closed|Connection reset|Broken pipe|recvmsg:|sendmsg:|GOAWAY")
# What gRPC says of a call that was cancelled here and not at the server, by itself or with its channel.
_BY_THE_CALLER = frozenset({"Locally cancelled by application!", "Channel closed!"})
# What gRPC says, here and not at the server, of a message beyond ``grpc.max_receive_message_length``.
_TOO_LARGE = re.compile(r"(CLIENT: Received|Decompressed) message larger than max")
_COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


def channel_arguments(options: Options) -> list[tuple[str, int]]:
    """GRPC's own settings of a channel."""
    arguments = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", min(options.max_answer_bytes, LARGEST_MESSAGE)),
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


def open_channel(kind: Any, address: Address, options: Options) -> Any:
    """A channel of ``grpc`` or of ``grpc.aio``. Nothing is sent yet.

    Raises:
        InvalidURL: A TLS file cannot be read.
    """
    arguments = channel_arguments(options)
    if address.is_loopback:
        # gRPC takes the environment's http_proxy for every host, and a proxy elsewhere does not lead to this machine.
        arguments.append(("grpc.enable_http_proxy", 0))
    if not address.secure:
        return kind.insecure_channel(address.netloc, options=arguments)
    return kind.secure_channel(address.netloc, _credentials(options.tls), options=arguments)


def _credentials(tls: TLS) -> Any:
    def content(file: File | None) -> bytes | None:
        return None if file is None else Path(file).read_bytes()

    try:
        return grpc.ssl_channel_credentials(content(tls.ca), content(tls.key), content(tls.cert))
    except OSError as error:
        raise errors.InvalidURL(f"cannot read the TLS file {error.filename}: {error.strerror or error}") from None


class GrpcCalls(ABC):
    """The methods of `Transport`, each handed to ``_call`` with its message and what makes a result of the answer.

    Args:
        address: The server.
        options: How to connect.
        channel: An open one.
    """

    def __init__(self, address: Address, options: Options, channel: Any) -> None:
        self.address = address
        self._options = options
        self._channel = channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """See `Transport`."""
        return self._infer(infer_message(request, timeout), request, timeout)

    def model_ready(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call("ModelReady", pb.ModelReadyRequest(name=model), _ready, timeout, model)

    def model_metadata(self, model: str, timeout: float, version: str = "") -> Any:
        """See `Transport`."""
        return self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), _json, timeout, model)

    def model_config(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call("ModelConfig", pb.ModelConfigRequest(name=model), _config, timeout, model)

    def repository_index(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._call("RepositoryIndex", pb.RepositoryIndexRequest(), _models, timeout)

    def statistics(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._call("ModelStatistics", pb.ModelStatisticsRequest(), _json, timeout)

    def register_system_region(self, name: str, key: str, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        message = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=nbytes)
        return self._call("SystemSharedMemoryRegister", message, _nothing, timeout)

    def unregister_system_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        message = pb.SystemSharedMemoryUnregisterRequest(name=name)
        return self._call("SystemSharedMemoryUnregister", message, _nothing, timeout)

    def register_cuda_region(self, name: str, handle: bytes, device: int, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        raw = base64.b64decode(handle)
        message = pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=raw, device_id=device, byte_size=nbytes)
        return self._call("CudaSharedMemoryRegister", message, _nothing, timeout)

    def unregister_cuda_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        message = pb.CudaSharedMemoryUnregisterRequest(name=name)
        return self._call("CudaSharedMemoryUnregister", message, _nothing, timeout)

    @abstractmethod
    def _infer(self, message: Any, request: InferRequest, timeout: float) -> Any:
        """Runs the inference ``message``, made of ``request``."""

    @abstractmethod
    def _call(self, method: str, message: Any, read: Callable[[Any], Any], timeout: float, model: str = "") -> Any:
        """Calls a method of the service, and reads its answer with ``read``; ``model`` is what it is about, if any."""

    def _settings(self, timeout: float) -> dict[str, Any]:
        """What every attempt is given besides its message."""
        headers = self._options.headers_now()
        return {"timeout": timeout, "metadata": tuple(headers.items()) or None}

    def _infer_settings(self, timeout: float) -> dict[str, Any]:
        return {**self._settings(timeout), "compression": _COMPRESSION[self._options.compression]}

    def _require_time(self, timeout: float) -> Deadline:
        if timeout <= 0:
            raise errors.deadline_exceeded(self.address, timeout)
        return Deadline(timeout)

    def _outputs(self, message: Any, request: InferRequest) -> dict[str, NDArray[Any]]:
        with Reading(self.address):
            outputs = read_outputs(message)
        request.require_answered(outputs, self.address)
        return outputs

    def _understood(self, message: Any, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of an answer that is no inference's."""
        most = self._options.max_description_bytes
        if message.ByteSize() > most:
            raise errors.too_large(self.address, most, "the description")
        with Reading(self.address):
            return read(message)

    def _typed(self, error: Any, model: str, seconds: float) -> errors.PinstreamError:
        code = error.code().name
        if code == "DEADLINE_EXCEEDED":
            return errors.deadline_exceeded(self.address, seconds)
        if code == "CANCELLED" and details(error) in _BY_THE_CALLER:
            return errors.cancelled(self.address)
        if code == "CANCELLED":
            return errors.from_status("UNAVAILABLE", "it has cancelled a call, as where it ends", self.address, model)
        if code == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(details(error)):
            if self._options.max_answer_bytes >= LARGEST_MESSAGE:
                return errors.too_large_for_grpc(self.address, LARGEST_MESSAGE)
            return errors.too_large(self.address, self._options.max_answer_bytes)
        if code == "UNAVAILABLE" and _BROKEN.search(details(error)):
            return self._unreachable(error)
        return errors.from_status(code, details(error), self.address, model)

    def _unreachable(self, error: Any) -> errors.ServerUnreachable:
        message = details(error)
        unknown = "errors resolving" in message
        reason = "the host name is not known" if unknown else message.strip().rpartition(": ")[2] or message
        # A certificate that is wrong now is wrong in a second as well.
        lasting = unknown or "CERTIFICATE" in message.upper()
        return errors.unreachable(self.address, reason, transient=not lasting)


def details(error: Any) -> str:
    """What gRPC or the server says of an error."""
    return error.details() or ""


def may_be_the_network(error: Any) -> bool:
    """Whether only a probe can tell: gRPC says UNAVAILABLE without a connection, Triton when it takes no request."""
    text = errors.first_line(details(error))
    return error.code() is grpc.StatusCode.UNAVAILABLE and not (errors.is_restriction(text) or errors.has_waited(text))


def _ready(answer: Any) -> bool:
    return bool(answer.ready)


def _json(answer: Any) -> Json:
    json: Json = MessageToDict(answer, preserving_proto_field_name=True)
    return json


def _config(answer: Any) -> Json:
    return _json(answer.config)


def _models(answer: Any) -> list[Json]:
    models: list[Json] = _json(answer).get("models", [])
    return models


def _nothing(_: Any) -> None:
    return None
