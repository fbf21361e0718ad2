"""A TCP proxy that does to connections what networks do: delays, stalls, resets, half-closes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

_PIECE = 65536


class ToxicProxy:
    """Stands before a server, by itself harmless. Its attributes may be set at any time, and count for all connections.

    Attributes:
        netloc: ``127.0.0.1:port`` to connect to.
        delay_s: Seconds that each piece of data waits, both ways.
        stalled: Nothing goes through, and nothing is closed.
        reset_after: Bytes of answers after which a connection is reset; None for never.
        connections: How many were made so far.
    """

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._tls = tls
        self.delay_s = 0.0
        self.stalled = False
        self.reset_after: int | None = None
        self.connections = 0
        self.netloc = ""
        self._going: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None

    def reset(self) -> None:
        """Resets all connections as they are."""
        self._call(self._reset())

    def half_close(self) -> None:
        """Ends the server's direction of all connections, and keeps the other open and unread."""
        self._call(self._half_close())

    def refuse(self) -> None:
        """Resets all connections and takes no new ones."""
        self._call(self._refuse())

    def accept(self) -> None:
        """Takes connections again, at the same port."""
        self._call(self._listen())

    def _call(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(10)

    async def _listen(self) -> None:
        port = int(self.netloc.rpartition(":")[2] or 0)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._tls)
        self.netloc = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _refuse(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        for writer in list(self._going):
            _reset(writer)

    async def _half_close(self) -> None:
        for writer in list(self._going):
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()
        self._going.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._going.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        up = asyncio.create_task(self._pump(reader, up_writer, None))
        try:
            with contextlib.suppress(OSError, RuntimeError):
                await self._pump(up_reader, writer, 0)
        finally:
            # Also where the proxy ends: Triton waits half a minute for the end of a connection that is open.
            up.cancel()
            self._going.discard(writer)
            with contextlib.suppress(OSError, RuntimeError):
                up_writer.close()
                writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                await asyncio.sleep(self.delay_s)
                while self.stalled:
                    await asyncio.sleep(0.01)
                if answered is not None and self.reset_after is not None:
                    answered += len(data)
                    if answered > self.reset_after:
                        writer.write(data[: len(data) // 2])
                        _reset(writer)
                        return
                writer.write(data)
                await writer.drain()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.call_soon(started.set)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # What was closed is let go of in the next round.
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def _stop(self) -> None:
        self._call(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):  # a connection that is gone has no socket
        # To linger for no time means to say RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def toxic_proxy(target: str, tls: ssl.SSLContext | None = None) -> Iterator[ToxicProxy]:
    """A proxy before ``host:port``; with ``tls`` it takes encrypted connections."""
    proxy = ToxicProxy(target, tls)
    started = threading.Event()
    thread = threading.Thread(target=proxy._run, args=(started,), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        proxy._stop()
        thread.join(10)
