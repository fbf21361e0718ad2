"""The synchronous client of the detection service."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

from . import yolox
from .address import Protocol, parse_url
from .detections import Detections
from .errors import ModelNotFound, PinstreamError, ServerNotReady, ServerUnreachable, deadline_exceeded
from .images import ImageLike, array_size, encode
from .labels import COCO
from .timing import Statistics, ensemble_models, read_statistics
from .transport import Deadline, Parameter, connect

# list[Any]: a list is invariant, so that a caller's list[str] would be no list[ImageLike].
Images: TypeAlias = list[Any] | tuple[ImageLike, ...]

# These say that no other image will fare better now.
_SERVER_IS_GONE = (ServerUnreachable, ServerNotReady, ModelNotFound)
_POLL_S = 0.1


class Detector:
    """Finds objects in images through a pinstream server. One object serves any number of threads.

    Example:
        >>> with Detector("localhost:8001") as detector:
        ...     for item in detector.detect("dog.jpg", conf=0.4):
        ...         print(item.name, item.score, item.box)

    Args:
        url: ``[grpc://|http://]host[:port]``; default ports 8001 (gRPC) and 8000 (HTTP).
        protocol: "grpc" or "http"; by default what the URL says, else gRPC.
        model: Name of the ensemble on the server.
        timeout: Seconds that a call may take, from connecting to the last byte of the answer; the same for both
            protocols. In a list each image has this time from the moment it is sent.
        in_flight: How many images of a list are on their way at once. The server batches them.

    Raises:
        InvalidURL: The URL cannot be read. Nothing is sent before the first call.
        ValueError: A timeout or in_flight that is not positive.
    """

    def __init__(
        self,
        url: str = "localhost",
        protocol: Protocol | None = None,
        model: str = "yolox",
        timeout: float = 10.0,
        in_flight: int = 8,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}: expected seconds above 0")
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}: expected at least 1")
        self.address = parse_url(url, protocol)
        self.model = model
        self.timeout = timeout
        self.in_flight = in_flight
        self._transport = connect(self.address)
        self._names: tuple[str, ...] | None = None
        self._models: tuple[str, ...] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._names_lock = threading.Lock()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Detector {self.address} model={self.model}>"

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
        self._require_open()
        parameters = yolox.request_parameters(conf, iou, max_det)
        if not isinstance(image, (list, tuple)):
            return self._detect_one(image, parameters)
        return self._detect_list(image, parameters, return_errors=on_error == "return")

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
        fills. A result is yielded as soon as it and all before it are there.

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
        self._require_open()
        window = self.in_flight if in_flight is None else in_flight
        if window < 1:
            raise ValueError(f"in_flight is {window}: expected at least 1")
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
        self._require_open()
        self._check_ready(Deadline(self.timeout))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until server and model take requests.

        Args:
            timeout: Seconds to wait in all.

        Raises:
            PinstreamError: They did not in time: the last reason, as `check_ready` raises it.
        """
        self._require_open()
        deadline = Deadline(timeout)
        while True:
            try:
                return self._check_ready(Deadline(min(self.timeout, max(deadline.left(), _POLL_S))))
            except PinstreamError:
                if deadline.left() <= _POLL_S:
                    raise
            time.sleep(_POLL_S)

    def class_names(self) -> tuple[str, ...]:
        """The labels: ``class_names()[class_id]``. Asked for once; COCO's for a service that does not tell them.

        Raises:
            PinstreamError: As for `detect`.
        """
        self._require_open()
        return self._class_names(Deadline(self.timeout))

    def statistics(self) -> Statistics:
        """The server's counters for the ensemble and its steps; ``later.since(earlier)`` gives the averages between.

        Raises:
            PinstreamError: As for `detect`.
        """
        self._require_open()
        deadline = Deadline(self.timeout)
        if self._models is None:
            self._models = ensemble_models(self.model, self._transport.model_config(self.model, deadline.left()))
        return read_statistics(self._transport.statistics(deadline.left()), self._models)

    def close(self) -> None:
        """Closes the connections. May be called twice."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._transport.close()

    def _detect_one(self, image: ImageLike, parameters: dict[str, Parameter]) -> Detections:
        data, size = encode(image), array_size(image)
        deadline = Deadline(self.timeout)
        try:
            names = self._class_names(deadline)
            request = yolox.detection_request(self.model, data, parameters)
            started = time.perf_counter()
            outputs = self._transport.infer(request, deadline.left())
        except _SERVER_IS_GONE:
            self._names = self._models = None  # what comes back may be a server with another model
            raise
        round_trip_ms = (time.perf_counter() - started) * 1e3
        return yolox.read_detections(outputs, names, size, round_trip_ms)

    def _detect_list(
        self, images: Images, parameters: dict[str, Parameter], return_errors: bool
    ) -> list[Detections | PinstreamError]:
        pool = self._executor()
        futures = [pool.submit(self._detect_one, image, parameters) for image in images]
        results: list[Detections | PinstreamError] = []
        try:
            for future in futures:
                try:
                    results.append(future.result())
                except PinstreamError as error:
                    if not return_errors or isinstance(error, _SERVER_IS_GONE):
                        raise
                    results.append(error)
        finally:
            for future in futures:
                future.cancel()
        return results

    def _stream(
        self, images: Iterable[ImageLike], parameters: dict[str, Parameter], in_flight: int, return_errors: bool
    ) -> Iterator[Detections | PinstreamError]:
        going: deque[Future[Detections]] = deque()
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="pinstream")
        try:
            for image in images:
                going.append(pool.submit(self._detect_one, image, parameters))
                while going and (len(going) >= in_flight or going[0].done()):
                    yield _outcome(going.popleft(), return_errors)
            while going:
                yield _outcome(going.popleft(), return_errors)
        finally:
            pool.shutdown(cancel_futures=True)

    def _require_open(self) -> None:
        if self._closed:
            raise PinstreamError("this Detector is closed: open a new one")

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.in_flight, thread_name_prefix="pinstream")
            return self._pool

    def _class_names(self, deadline: Deadline) -> tuple[str, ...]:
        names = self._names
        if names is not None:
            return names
        # One thread asks, the others wait for what it learns.
        if not self._names_lock.acquire(timeout=max(deadline.left(), 0.0)):
            raise deadline_exceeded(self.address, self.timeout)
        try:
            if self._names is None:
                self._names = self._ask_class_names(deadline)
            return self._names
        finally:
            self._names_lock.release()

    def _ask_class_names(self, deadline: Deadline) -> tuple[str, ...]:
        metadata = self._transport.model_metadata(self.model, deadline.left())
        if not yolox.tells_class_names(self.model, metadata):
            return COCO
        return yolox.read_class_names(self._transport.infer(yolox.class_names_request(self.model), deadline.left()))

    def _check_ready(self, deadline: Deadline) -> None:
        if self._transport.model_ready(self.model, deadline.left()):
            return
        # Only now, when something is wrong, does it pay to ask what.
        index = self._transport.repository_index(deadline.left())
        entries = [entry for entry in index if entry["name"] == self.model]
        if not entries:
            known = ", ".join(sorted({entry["name"] for entry in index})) or "no model at all"
            raise ModelNotFound(f"the server at {self.address} has no model '{self.model}': it has {known}")
        state = entries[-1].get("state") or "not loaded"
        reason = entries[-1].get("reason") or "no reason given"
        raise ServerNotReady(f"model '{self.model}' at {self.address} is not ready: {state} ({reason})")


def _outcome(future: Future[Detections], return_errors: bool) -> Detections | PinstreamError:
    try:
        return future.result()
    except PinstreamError as error:
        if not return_errors or isinstance(error, _SERVER_IS_GONE):
            raise
        return error
