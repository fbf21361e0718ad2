"""gRPC for asyncio, through tritonclient's own client. A cancelled task cancels its call on the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tritonclient.grpc.aio as triton_grpc
from grpc.aio import UsageError
from tritonclient.utils import InferenceServerException

from . import errors
from .address import Address
from .grpc_calls import LIVE_PROBE_S, GrpcCalls, may_be_the_network, open_client, read_outputs
from .options import Options
from .transport import InferRequest


class AsyncGrpcTransport(GrpcCalls):
    """A gRPC channel to one server, for one event loop."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._client = open_client(triton_grpc.InferenceServerClient, address, options)

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._client.close()

    async def _infer(self, request: InferRequest, arguments: dict[str, Any], timeout: float) -> Any:
        return await self._call(read_outputs(request), timeout, request.model, "infer", request.model, **arguments)

    async def _call(
        self, read: Callable[[Any], Any], timeout: float, model: str, method: str, *arguments: Any, **options: Any
    ) -> Any:
        deadline = self._require_time(timeout)
        ask = getattr(self._client, method)
        try:
            headers = self._options.headers_now()
            return read(await ask(*arguments, **options, headers=headers, client_timeout=timeout))
        except InferenceServerException as error:
            if may_be_the_network(error) and not await self._is_live(min(deadline.left(), LIVE_PROBE_S)):
                raise self._unreachable(error) from None
            raise self._typed(error, model, timeout) from None
        except (ValueError, UsageError) as error:  # what gRPC raises on a closed channel
            raise errors.unreachable(self.address, str(error), transient=False) from None

    async def _is_live(self, timeout: float) -> bool:
        try:
            headers = self._options.headers_now()
            return timeout > 0 and bool(await self._client.is_server_live(headers=headers, client_timeout=timeout))
        except InferenceServerException as error:
            return errors.is_restriction(errors.first_line(error.message()))
