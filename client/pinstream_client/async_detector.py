"""The asyncio client of the detection service."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, overload

from . import yolox
from .address import Address, Protocol
from .async_session import AsyncSession, in_thread
from .connecting import AHEAD, connecting, require_positive
from .detections import Detections
from .detector import Images
from .errors import InvalidImage, PinstreamError
from .images import ImageLike
from .options import MAX_ANSWER_BYTES, TLS, Compression, Headers, Token
from .retry import RETRY, Retry
from .service import SERVER_IS_GONE, Service, Transport
from .timing import Statistics
from .transport import Deadline, Parameter

_END: Any = object()


class AsyncDetector:
    """`Detector` for asyncio: the same arguments, methods, results and errors.

    One object serves any number of tasks. Cancelling a task cancels its request on the server.

    Example:
        >>> async with AsyncDetector("localhost:8001") as detector:
        ...     found = await detector.detect("dog.jpg", conf=0.4)
        ...     async for found in detector.stream(frames):
        ...         print(len(found))

    Args:
        url: As for `Detector`.
        protocol: As for `Detector`.
        model: As for `Detector`.
        timeout: As for `Detector`.
        in_flight: As for `Detector`.
        transport: As for `Detector`.
        tls: As for `Detector`.
        headers: As for `Detector`.
        token: As for `Detector`.
        compression: As for `Detector`.
        retry: As for `Detector`.
        max_answer_bytes: As for `Detector`.
        server_timings: As for `Detector`.

    Raises:
        InvalidURL: A URL cannot be read. Nothing is sent before the first call.
        ValueError: An option that is out of range.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "localhost",
        protocol: Protocol | None = None,
        model: str = "yolox",
        timeout: float = 10.0,
        in_flight: int = 8,
        *,
        transport: Transport = "encoded",
        tls: TLS | bool = False,
        headers: Headers | None = None,
        token: Token | None = None,
        compression: Compression | None = None,
        retry: Retry = RETRY,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        server_timings: bool = False,
    ) -> None:
        require_positive(timeout, in_flight)
        cluster, options = connecting(
            url,
            protocol,
            tls=tls,
            headers=headers,
            token=token,
            compression=compression,
            retry=retry,
            max_answer_bytes=max_answer_bytes,
        )
        self.model = model
        self.timeout = timeout
        self.in_flight = in_flight
        self._service = Service(cluster, options, model, transport)
        self._ask = self._service.timed if server_timings else self._service.detect
        self._session = AsyncSession(cluster, options, "AsyncDetector")

    async def __aenter__(self) -> AsyncDetector:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncDetector {' '.join(map(str, self.addresses))} model={self.model}>"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The servers."""
        return self._service.cluster.addresses

    @property
    def address(self) -> Address:
        """The server; of several the first."""
        return self.addresses[0]

    @property
    def transport(self) -> Transport:
        """How images travel now: "tensor" where shared memory was asked for and refused."""
        return self._service.transport

    @overload
    async def detect(
        self,
        image: ImageLike,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
    ) -> Detections: ...
    @overload
    async def detect(
        self,
        image: Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> list[Detections]: ...
    @overload
    async def detect(
        self,
        image: Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        *,
        on_error: Literal["return"],
    ) -> list[Detections | PinstreamError]: ...
    async def detect(
        self,
        image: ImageLike | Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Detections | list[Detections] | list[Detections | PinstreamError]:
        """Finds the objects in one image, or in each of a list; see `Detector.detect`."""
        self._session.require_open()
        parameters = yolox.request_parameters(conf, iou, max_det)
        if isinstance(image, (list, tuple)):
            stream = self._stream(image, parameters, self.in_flight, on_error == "return")
            return [found async for found in stream]
        return await self._detect(image, parameters)

    @overload
    def stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> AsyncIterator[Detections]: ...
    @overload
    def stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        *,
        on_error: Literal["return"],
    ) -> AsyncIterator[Detections | PinstreamError]: ...
    def stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> AsyncIterator[Detections | PinstreamError]:
        """Finds the objects in each of any number of images, and yields the results in their order.

        See `Detector.stream`. The images may come from an asynchronous iterable as well; those of another one, which
        may block, are taken in a thread.
        """
        self._session.require_open()
        window = self.in_flight if in_flight is None else in_flight
        require_positive(self.timeout, window)
        if isinstance(images, (str, bytes, PathLike)):
            raise InvalidImage("stream takes many images, and was given one: use detect, or put it into a list")
        return self._stream(images, yolox.request_parameters(conf, iou, max_det), window, on_error == "return")

    async def is_ready(self) -> bool:
        """Whether server and model take requests now. Never raises; takes at most the timeout."""
        try:
            await self.check_ready()
        except PinstreamError:
            return False
        return True

    async def check_ready(self) -> None:
        """Returns when server and model take requests now; see `Detector.check_ready`."""
        self._session.require_open()
        await self._session.run(self._service.check_ready(Deadline(self.timeout)))

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until server and model take requests; see `Detector.wait_ready`."""
        self._session.require_open()
        await self._session.run(self._service.wait_ready(timeout, self.timeout))

    async def class_names(self) -> tuple[str, ...]:
        """The labels; see `Detector.class_names`."""
        self._session.require_open()
        return await self._session.run(self._service.class_names(Deadline(self.timeout)))

    async def statistics(self) -> Statistics:
        """The server's counters; see `Detector.statistics`."""
        self._session.require_open()
        return await self._session.run(self._service.statistics(Deadline(self.timeout)))

    async def close(self) -> None:
        """Closes the connections. May be called twice."""
        await self._session.close(self._service.close())

    async def _detect(self, image: ImageLike, parameters: dict[str, Parameter]) -> Detections:
        return await self._session.run(self._ask(yolox.DetectRequest(image, parameters), self.timeout))

    async def _stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        parameters: dict[str, Parameter],
        in_flight: int,
        return_errors: bool,
    ) -> AsyncIterator[Detections | PinstreamError]:
        going: deque[asyncio.Task[Detections]] = deque()
        source, free = _one_by_one(images), asyncio.Semaphore(in_flight)
        try:
            while True:
                await free.acquire()
                while going and (going[0].done() or len(going) >= AHEAD * in_flight):
                    yield await _outcome(going.popleft(), return_errors)
                image = await anext(source, _END)
                if image is _END:
                    break
                going.append(asyncio.create_task(self._detect(image, parameters)))
                going[-1].add_done_callback(lambda _: free.release())
            while going:
                yield await _outcome(going.popleft(), return_errors)
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)


async def _outcome(task: asyncio.Task[Detections], return_errors: bool) -> Detections | PinstreamError:
    try:
        return await task
    except PinstreamError as error:
        if not return_errors or isinstance(error, SERVER_IS_GONE):
            raise
        return error


async def _one_by_one(images: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    elif isinstance(images, Sequence):
        for image in images:
            yield image
    else:
        source = iter(images)
        while (image := await in_thread(lambda: next(source, _END))) is not _END:
            yield image
