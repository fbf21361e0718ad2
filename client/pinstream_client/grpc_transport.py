"""gRPC, through tritonclient's own client: its unary calls are safe from several threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from . import errors
from .address import Address
from .transport import Deadline, InferRequest, Json, infer_tensors

Result = TypeVar("Result")

_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Left alone, gRPC waits up to two minutes before it connects again: a server that is back must be seen sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Otherwise two channels of one process to one server share a connection, and its state after a failure.
    ("grpc.use_local_subchannel_pool", 1),
]
# How long a server that answered UNAVAILABLE gets to show that it was itself that said so, and not the network.
_LIVE_PROBE_S = 1.0


class GrpcTransport:
    """A gRPC channel to one server."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client = triton_grpc.InferenceServerClient(address.netloc, channel_args=_CHANNEL_ARGUMENTS)

    def infer(self, request: InferRequest, timeout: float) -> dict[str, NDArray[Any]]:
        """See `Transport`."""
        try:
            inputs, outputs = infer_tensors(triton_grpc, request)
        except InferenceServerException as error:
            raise errors.InvalidRequest(errors.first_line(error.message())) from None
        result = self._call(
            timeout,
            request.model,
            lambda: self._client.infer(
                request.model, inputs, outputs=outputs, parameters=dict(request.parameters), client_timeout=timeout
            ),
        )
        return {name: result.as_numpy(name) for name in request.outputs}

    def server_ready(self, timeout: float) -> bool:
        """See `Transport`."""
        return bool(self._call(timeout, "", lambda: self._client.is_server_ready(client_timeout=timeout)))

    def model_ready(self, model: str, timeout: float) -> bool:
        """See `Transport`."""
        return bool(self._call(timeout, model, lambda: self._client.is_model_ready(model, client_timeout=timeout)))

    def model_metadata(self, model: str, timeout: float) -> Json:
        """See `Transport`."""
        return self._json(timeout, model, self._client.get_model_metadata, model)

    def model_config(self, model: str, timeout: float) -> Json:
        """See `Transport`."""
        config: Json = self._json(timeout, model, self._client.get_model_config, model)["config"]
        return config

    def repository_index(self, timeout: float) -> list[Json]:
        """See `Transport`."""
        models: list[Json] = self._json(timeout, "", self._client.get_model_repository_index).get("models", [])
        return models

    def statistics(self, timeout: float) -> Json:
        """See `Transport`."""
        return self._json(timeout, "", self._client.get_inference_statistics)

    def close(self) -> None:
        """See `Transport`."""
        self._client.close()

    def _json(self, timeout: float, model: str, method: Callable[..., Any], *arguments: str) -> Json:
        answer: Json = self._call(timeout, model, lambda: method(*arguments, as_json=True, client_timeout=timeout))
        return answer

    def _call(self, timeout: float, model: str, method: Callable[[], Result]) -> Result:
        deadline = Deadline(timeout)
        if timeout <= 0:
            raise errors.deadline_exceeded(self.address, timeout)
        try:
            return method()
        except InferenceServerException as error:
            raise self._typed(error, model, deadline) from None
        except ValueError as error:  # what gRPC raises on a closed channel
            raise errors.unreachable(self.address, str(error)) from None

    def _typed(self, error: Any, model: str, deadline: Deadline) -> errors.PinstreamError:
        code = str(error.status()).rpartition(".")[2]
        if code == "DEADLINE_EXCEEDED":
            return errors.deadline_exceeded(self.address, deadline.seconds)
        # gRPC says UNAVAILABLE when it has no connection, Triton when it takes no request: only Triton answers.
        if code == "UNAVAILABLE" and not self._is_live(min(deadline.left(), _LIVE_PROBE_S)):
            return errors.unreachable(self.address, _short_reason(error.message()))
        return errors.from_status(code, error.message(), self.address, model)

    def _is_live(self, timeout: float) -> bool:
        try:
            return timeout > 0 and bool(self._client.is_server_live(client_timeout=timeout))
        except InferenceServerException:
            return False


def _short_reason(message: str) -> str:
    """The last part of gRPC's chain of causes, such as "Connection refused"."""
    if "errors resolving" in message:
        return "the host name is not known"
    return message.strip().rpartition(": ")[2] or message
