"""Runs the client's procedures in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from .cluster import Cluster
from .errors import PinstreamError
from .options import Options
from .steps import Ask, Pause, Result, Step, Steps
from .transport import AsyncTransport, connect_async


class AsyncSession:
    """The connections of an asyncio client.

    They belong to the event loop that they were made in: in another loop, and in a forked child, there are new ones.

    Args:
        cluster: The servers.
        options: How to connect. Nothing is opened before the first call.
        owner: What the user calls it, for the error of a closed one.
    """

    def __init__(self, cluster: Cluster, options: Options, owner: str) -> None:
        self.cluster = cluster
        self._options = options
        self._owner = owner
        self._closed = False
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._transports: list[AsyncTransport] = []

    async def run(self, steps: Steps[Result]) -> Result:
        """Runs a procedure to its end. Cancelling the task cancels what is on its way.

        Raises:
            PinstreamError: What the procedure raises.
        """
        transports = self._opened()
        send, value = steps.send, None
        while True:
            try:
                step = send(value)
            except StopIteration as end:
                result: Result = end.value
                return result
            finally:
                value = None  # an error that is still held by the frame it was raised in lives on
            try:
                send, value = steps.send, await _do(step, transports)
            except BaseException as error:
                send, value = steps.throw, error

    def require_open(self) -> None:
        """Raises PinstreamError if it is closed."""
        if self._closed:
            raise PinstreamError(f"this {self._owner} is closed: open a new one")

    async def close(self, farewell: Steps[None] | None = None) -> None:
        """Runs a last procedure where there are connections, and closes them. May be called twice."""
        self._closed = True
        if farewell is not None and self._home == _here():
            await self.run(farewell)
        transports, self._transports = self._transports, []
        if self._home == _here():
            for transport in transports:
                await transport.close()
        self._home = None

    def _opened(self) -> list[AsyncTransport]:
        here = _here()
        if self._home != here:
            self._transports = [connect_async(address, self._options) for address in self.cluster.addresses]
            self._home = here
        return self._transports


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


async def _do(step: Step, transports: list[AsyncTransport]) -> Any:
    if isinstance(step, Ask):
        return await step.call(transports[step.server], step.timeout)
    if isinstance(step, Pause):
        return await asyncio.sleep(step.seconds)
    return await in_thread(step.call)


async def in_thread(call: Callable[[], Any]) -> Any:
    """Runs ``call`` in a thread. A cancelled task waits for it: it may be writing into memory that is used again."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await work
        raise
