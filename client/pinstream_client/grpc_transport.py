"""gRPC for threads, through tritonclient's own client: its unary calls are safe from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import errors
from .address import Address
from .cancellation import Cancellation
from .forking import GRPC_GATE
from .grpc_calls import LIVE_PROBE_S, GrpcCalls, may_be_the_network, open_client, read_outputs
from .options import Options
from .transport import InferRequest

Result = TypeVar("Result")

# Clients of a parent process: closing them would have gRPC wait for threads that the fork left behind.
_abandoned: list[Any] = []


class GrpcTransport(GrpcCalls):
    """A gRPC channel to one server."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._client = open_client(triton_grpc.InferenceServerClient, address, options)
        self._starting = threading.Lock()

    def close(self) -> None:
        """See `Transport`."""
        self._client.close()

    def abandon(self) -> None:
        """See `Transport`."""
        _abandoned.append(self._client)

    def _infer(self, request: InferRequest, arguments: dict[str, Any], timeout: float) -> Any:
        read = read_outputs(request)
        if request.cancellation is None:
            return self._call(read, timeout, request.model, "infer", request.model, **arguments)
        return self._guarded(
            lambda left: read(self._cancellable(request.model, arguments, left, request.cancellation)),
            timeout,
            request.model,
        )

    def _call(
        self, read: Callable[[Any], Any], timeout: float, model: str, method: str, *arguments: Any, **options: Any
    ) -> Any:
        def call(left: float) -> Any:
            ask = getattr(self._client, method)
            return read(ask(*arguments, **options, headers=self._options.headers_now(), client_timeout=left))

        return self._guarded(call, timeout, model)

    def _guarded(self, call: Callable[[float], Result], timeout: float, model: str) -> Result:
        deadline = self._require_time(timeout)
        try:
            with GRPC_GATE:
                return call(timeout)
        except InferenceServerException as error:
            if may_be_the_network(error) and not self._is_live(min(deadline.left(), LIVE_PROBE_S)):
                raise self._unreachable(error) from None
            raise self._typed(error, model, timeout) from None
        except ValueError as error:  # what gRPC raises on a closed channel
            raise errors.unreachable(self.address, str(error), transient=False) from None

    def _cancellable(
        self, model: str, arguments: dict[str, Any], timeout: float, cancellation: Cancellation | None
    ) -> Any:
        """`infer` in another thread's hands while this one waits, so that a third can cancel it."""
        assert cancellation is not None
        ended = threading.Event()
        outcome: dict[str, Any] = {}

        def done(result: Any, error: Any) -> None:
            outcome.update(result=result, error=error)
            ended.set()

        # tritonclient keeps the call in an attribute between two lines of async_infer: not safe from several threads.
        with self._starting:
            call = self._client.async_infer(
                model, callback=done, **arguments, headers=self._options.headers_now(), client_timeout=timeout
            )
        with cancellation.cancelling(call.cancel):
            ended.wait()
        if outcome["error"] is not None:
            raise outcome["error"]
        return outcome["result"]

    def _is_live(self, timeout: float) -> bool:
        try:
            headers = self._options.headers_now()
            with GRPC_GATE:
                return timeout > 0 and bool(self._client.is_server_live(headers=headers, client_timeout=timeout))
        except InferenceServerException as error:
            return errors.is_restriction(errors.first_line(error.message()))
