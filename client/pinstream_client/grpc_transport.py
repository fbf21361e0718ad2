"""gRPC for threads: a channel's unary calls are safe from several of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from . import errors
from .address import Address
from .forking import GRPC_GATE
from .grpc_calls import LIVE_PROBE_S, GrpcCalls, details, may_be_the_network, open_channel
from .options import Options
from .transport import InferRequest

# Channels of a parent process: closing them would have gRPC wait for threads that the fork left behind.
_abandoned: list[Any] = []


class GrpcTransport(GrpcCalls):
    """A gRPC channel to one server."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options, open_channel(grpc, address, options))

    def close(self) -> None:
        """See `Transport`."""
        self._channel.close()

    def abandon(self) -> None:
        """See `Transport`."""
        _abandoned.append(self._channel)

    def _infer(self, message: Any, request: InferRequest, timeout: float) -> Any:
        settings = self._infer_settings(timeout)

        def call() -> Any:
            if request.cancellation is None:
                return self._stub.ModelInfer(message, **settings)
            # In gRPC's own thread's hands while this one waits, so that a third can cancel it.
            under_way = self._stub.ModelInfer.future(message, **settings)
            with request.cancellation.cancelling(under_way.cancel):
                return under_way.result()

        return self._outputs(self._guarded(call, timeout, request.model), request)

    def _call(self, method: str, message: Any, read: Callable[[Any], Any], timeout: float, model: str = "") -> Any:
        ask, settings = getattr(self._stub, method), self._settings(timeout)
        return self._understood(self._guarded(lambda: ask(message, **settings), timeout, model), read)

    def _guarded(self, call: Callable[[], Any], timeout: float, model: str) -> Any:
        deadline = self._require_time(timeout)
        try:
            with GRPC_GATE:
                return call()
        except grpc.RpcError as error:
            if may_be_the_network(error) and not self._is_live(min(deadline.left(), LIVE_PROBE_S)):
                raise self._unreachable(error) from None
            raise self._typed(error, model, timeout) from None
        except grpc.FutureCancelledError:
            raise errors.cancelled(self.address) from None
        except ValueError as error:  # what gRPC raises on a closed channel
            raise errors.unreachable(self.address, str(error), transient=False) from None

    def _is_live(self, timeout: float) -> bool:
        try:
            with GRPC_GATE:
                return timeout > 0 and self._stub.ServerLive(pb.ServerLiveRequest(), **self._settings(timeout)).live
        except grpc.RpcError as error:
            return errors.is_restriction(errors.first_line(details(error)))
