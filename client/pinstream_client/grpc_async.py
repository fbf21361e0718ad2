"""gRPC for asyncio. A cancelled task cancels its call on the server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from . import errors
from .address import Address
from .grpc_calls import LIVE_PROBE_S, GrpcCalls, details, may_be_the_network, open_channel
from .options import Options
from .transport import InferRequest


class AsyncGrpcTransport(GrpcCalls):
    """A gRPC channel to one server, for one event loop."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options, open_channel(grpc.aio, address, options))

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._channel.close()

    async def _infer(self, message: Any, request: InferRequest, timeout: float) -> Any:
        settings = self._infer_settings(timeout)
        call = partial(self._stub.ModelInfer, message, **settings)
        return self._outputs(await self._guarded(call, timeout, request.model), request)

    async def _call(
        self, method: str, message: Any, read: Callable[[Any], Any], timeout: float, model: str = ""
    ) -> Any:
        call = partial(getattr(self._stub, method), message, **self._settings(timeout))
        return self._understood(await self._guarded(call, timeout, model), read)

    async def _guarded(self, call: Callable[[], Any], timeout: float, model: str) -> Any:
        deadline = self._require_time(timeout)
        try:
            return await call()
        except grpc.RpcError as error:
            if may_be_the_network(error) and not await self._is_live(min(deadline.left(), LIVE_PROBE_S)):
                raise self._unreachable(error) from None
            raise self._typed(error, model, timeout) from None
        except (ValueError, grpc.aio.UsageError) as error:  # what gRPC raises on a closed channel
            raise errors.unreachable(self.address, str(error), transient=False) from None

    async def _is_live(self, timeout: float) -> bool:
        try:
            answer = timeout > 0 and await self._stub.ServerLive(pb.ServerLiveRequest(), **self._settings(timeout))
            return bool(answer and answer.live)
        except grpc.RpcError as error:
            return errors.is_restriction(errors.first_line(details(error)))
