"""The synchronous client of the detection service."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

from . import yolox
from .address import Address, Protocol
from .calls import MOST_THREADS, Call, CallPool
from .cancellation import Cancellation
from .connecting import AHEAD, connecting, require_positive
from .detections import Detections
from .errors import InvalidImage, PinstreamError
from .images import ImageLike
from .options import MAX_ANSWER_BYTES, TLS, Compression, Headers, Token
from .retry import RETRY, Retry
from .service import SERVER_IS_GONE, Service, Transport
from .session import Session
from .timing import Statistics
from .transport import Deadline, Parameter

# list[Any]: a list is invariant, so that a caller's list[str] would be no list[ImageLike].
Images: TypeAlias = list[Any] | tuple[ImageLike, ...]
_END: Any = object()


class Detector:
    """Finds objects in images through a pinstream server.

    One object serves any number of threads, and the children that its process is forked into.

    Example:
        >>> with Detector("localhost:8001") as detector:
        ...     for item in detector.detect("dog.jpg", conf=0.4):
        ...         print(item.name, item.score, item.box)

    Args:
        url: ``[grpc://|grpcs://|http://|https://]host[:port]``, or several of them: servers of the same models, asked
            in turn. One that does not answer, or has not the model ready, is left out and tried again later.
        protocol: "grpc" or "http"; by default what the URL says, else gRPC.
        model: Name of the ensemble on the server.
        timeout: Seconds that a call may take, from its beginning to the last byte of the answer, with all its retries;
            the same for both protocols. In a list each image has this time from the moment it is sent.
        in_flight: How many images of a list or a stream are on their way at once, 256 at most. The server batches them.
        transport: How images travel. "encoded": as the bytes of a file. The others letterbox and suppress in this
            process and give the detector itself what it needs, with the same results (files then need OpenCV):
            "tensor" within the request, "shm" in system shared memory and "cuda" in GPU memory, both for a server on
            this host. One that refuses shared memory is noticed once, with the warning `SharedMemoryRefused`.
        tls: True, or the files of an encrypted connection, which ``grpcs://`` and ``https://`` ask for as well.
        headers: Sent with every request; a callable is asked anew each time.
        token: Sent as ``Authorization: Bearer``; a callable is asked anew each time.
        compression: "gzip" or "deflate", of requests, and over HTTP of answers.
        retry: How often refused and broken connections and the answer UNAVAILABLE are tried again, within ``timeout``.
        max_answer_bytes: How large an answer may be, unpacked; of one that is larger no more is read. Over gRPC 2 GiB
            is the most. A 64th of it, at least 1 MiB, may be JSON or tell of models.
        server_timings: Ask for the server's time split around each call: two more requests for each image.

    Raises:
        InvalidURL: A URL or a TLS file cannot be read. Nothing is sent before the first call.
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
        require_positive(timeout, in_flight, MOST_THREADS)
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
        self._session = Session(cluster, options, "Detector")
        self._calls = CallPool()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Detector {' '.join(map(str, self.addresses))} model={self.model}>"

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
    def detect(
        self,
        image: ImageLike,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
    ) -> Detections: ...
    @overload
    def detect(
        self,
        image: Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> list[Detections]: ...
    @overload
    def detect(
        self,
        image: Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        *,
        on_error: Literal["return"],
    ) -> list[Detections | PinstreamError]: ...
    def detect(
        self,
        image: ImageLike | Images,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Detections | list[Detections] | list[Detections | PinstreamError]:
        """Finds the objects in one image, or in each of a list.

        A list is sent as one request for each image, ``in_flight`` at a time: the server batches what arrives together,
        and an image that it cannot decode fails alone.

        Args:
            image: A path, the bytes of a JPEG, PNG, BMP or WebP file, a uint8 array ([height, width, 3] in BGR order,
                or [height, width] in grey), or a list or tuple of these.
            conf: Lowest score, 0 to 1; the service's default when None.
            iou: Overlap above which the lower of two boxes of one class is dropped, 0 to 1; the service's default
                when None.
            max_det: Most objects per image; the service's default when None.
            on_error: For lists. "raise" raises the first failure in the list's order. "return" puts each image's own
                error into its place; a server that is unreachable, not ready or without the model is raised all the
                same.

        Returns:
            `Detections` for one image; for a list, a list in the same order.

        Raises:
            InvalidImage: The image cannot be read or encoded; nothing was sent.
            InvalidRequest: The server refused the image or a parameter.
            ServerUnreachable, ServerNotReady, ModelNotFound, DeadlineExceeded, ServerError: See `errors`.
        """
        self._session.require_open()
        parameters = yolox.request_parameters(conf, iou, max_det)
        if isinstance(image, (list, tuple)):
            return list(self._stream(image, parameters, self.in_flight, on_error == "return"))
        return self._detect(image, parameters)

    def submit(
        self, image: ImageLike, conf: float | None = None, iou: float | None = None, max_det: int | None = None
    ) -> Call[Detections]:
        """Starts `detect` of one image and returns at once.

        Returns:
            A `concurrent.futures.Future` of the `Detections`. Its ``cancel()`` reaches the server; what has begun then
            ends with the error `Cancelled`.

        Raises:
            InvalidRequest: A threshold that is no number.
        """
        self._session.require_open()
        return self._submit(image, yolox.request_parameters(conf, iou, max_det))

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> Iterator[Detections]: ...
    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        *,
        on_error: Literal["return"],
    ) -> Iterator[Detections | PinstreamError]: ...
    def stream(
        self,
        images: Iterable[ImageLike],
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        in_flight: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Detections | PinstreamError]:
        """Finds the objects in each of any number of images, and yields the results in their order.

        Images are taken from the iterable only as they are sent, so that it may be endless: a camera, a directory that
        fills. A result is yielded as soon as it and all before it are there; while one of them takes long, others are
        sent, until ``4 * in_flight`` wait for it.

        Args:
            images: As `detect` takes them one by one.
            conf: As for `detect`.
            iou: As for `detect`.
            max_det: As for `detect`.
            in_flight: How many requests are kept going at once; the Detector's own when None.
            on_error: "raise" raises the first failure. "return" yields each image's own error in its place; a server
                that is unreachable, not ready or without the model is raised all the same.

        Raises:
            PinstreamError: As for `detect`.
        """
        self._session.require_open()
        window = self.in_flight if in_flight is None else in_flight
        require_positive(self.timeout, window, MOST_THREADS)
        if isinstance(images, (str, bytes, PathLike)):
            raise InvalidImage("stream takes many images, and was given one: use detect, or put it into a list")
        return self._stream(images, yolox.request_parameters(conf, iou, max_det), window, on_error == "return")

    def is_ready(self) -> bool:
        """Whether server and model take requests now. Never raises; takes at most the timeout."""
        try:
            self.check_ready()
        except PinstreamError:
            return False
        return True

    def check_ready(self) -> None:
        """Returns when server and model take requests now.

        Raises:
            ServerUnreachable, DeadlineExceeded: Nothing, or nothing in time, answers there.
            ServerNotReady: The server or the model does not take requests; the message has the server's reason.
            ModelNotFound: The message lists the models that there are.
        """
        self._session.require_open()
        self._session.run(self._service.check_ready(Deadline(self.timeout)))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until server and model take requests.

        Args:
            timeout: Seconds to wait in all.

        Raises:
            PinstreamError: They did not in time: the last reason, as `check_ready` raises it.
        """
        self._session.require_open()
        self._session.run(self._service.wait_ready(timeout, self.timeout))

    def class_names(self) -> tuple[str, ...]:
        """The labels: ``class_names()[class_id]``. Asked for once; COCO's for a service that does not tell them.

        Raises:
            PinstreamError: As for `detect`.
        """
        self._session.require_open()
        return self._session.run(self._service.class_names(Deadline(self.timeout)))

    def statistics(self) -> Statistics:
        """The server's counters for the ensemble and its steps; ``later.since(earlier)`` gives the averages between.

        Raises:
            PinstreamError: As for `detect`.
        """
        self._session.require_open()
        return self._session.run(self._service.statistics(Deadline(self.timeout)))

    def close(self) -> None:
        """Waits for what is on its way, and closes the connections. May be called twice."""
        self._calls.close()
        self._session.close(self._service.close())

    def _detect(
        self, image: ImageLike, parameters: dict[str, Parameter], cancellation: Cancellation | None = None
    ) -> Detections:
        request = yolox.DetectRequest(image, parameters, cancellation)
        return self._session.run(self._ask(request, self.timeout), cancellation)

    def _submit(self, image: ImageLike, parameters: dict[str, Parameter]) -> Call[Detections]:
        return self._calls.start(lambda cancellation: self._detect(image, parameters, cancellation))

    def _stream(
        self, images: Iterable[ImageLike], parameters: dict[str, Parameter], in_flight: int, return_errors: bool
    ) -> Iterator[Detections | PinstreamError]:
        going: deque[Call[Detections]] = deque()
        source, free = iter(images), threading.Semaphore(in_flight)
        try:
            while True:
                free.acquire()
                # One that takes long holds up what is yielded, and not at once what is sent.
                while going and (going[0].done() or len(going) >= AHEAD * in_flight):
                    yield _outcome(going.popleft(), return_errors)
                image = next(source, _END)
                if image is _END:
                    break
                going.append(self._submit(image, parameters))
                going[-1].add_done_callback(lambda _: free.release())
            while going:
                yield _outcome(going.popleft(), return_errors)
        finally:
            for call in going:
                call.cancel()


def _outcome(call: Call[Detections], return_errors: bool) -> Detections | PinstreamError:
    try:
        return call.result()
    except PinstreamError as error:
        if not return_errors or isinstance(error, SERVER_IS_GONE):
            raise
        return error
