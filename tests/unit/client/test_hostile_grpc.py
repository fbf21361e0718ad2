"""gRPC servers that give what no Triton does, and detection services that give what is no detection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pinstream_client import (
    AnswerTooLarge,
    AsyncDetector,
    Cancelled,
    Detections,
    Detector,
    InvalidRequest,
    Retry,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
    grpc_calls,
)

MIB = 1 << 20
IMAGE = b"a picture"
Tensors = dict[str, tuple[str, list[int], bytes]]


def ints(*numbers: int) -> bytes:
    return np.array(numbers, np.int32).tobytes()


def floats(*numbers: float) -> bytes:
    return np.array(numbers, np.float32).tobytes()


DETECTIONS: Tensors = {
    "num_dets": ("INT32", [1, 1], ints(1)),
    "det_boxes": ("FP32", [1, 1, 4], floats(1, 2, 3, 4)),
    "det_scores": ("FP32", [1, 1], floats(0.5)),
    "det_classes": ("INT32", [1, 1], ints(0)),
}
LABELS = ("BYTES", [1, 2], b"\1\0\0\0a\1\0\0\0b")


@dataclass
class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A detection service that gives what it is told to.

    Attributes:
        tensors: The outputs of an image.
        labels: The output class_names.
        without: So many of the outputs have no bytes.
        description: The platform that the metadata names.
        refusal: What is said instead of the outputs.
        status: The status that goes with it.
        held: Set once an answer is held back, for good.
    """

    tensors: Tensors = field(default_factory=lambda: DETECTIONS)
    labels: tuple[str, list[int], bytes] = LABELS
    without: int = 0
    description: str = ""
    refusal: str = ""
    status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    held: threading.Event | None = None

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = pb.ModelMetadataResponse(name=request.name, platform=self.description)
        answer.inputs.add(name="image", datatype="BYTES", shape=[-1, 1])
        for name in (*DETECTIONS, "class_names"):
            answer.outputs.add(name=name, datatype="FP32", shape=[-1])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        labels = [output.name for output in request.outputs] == ["class_names"]
        if self.held:
            self.held.set()
            threading.Event().wait(3)
        if self.refusal:
            context.abort(self.status, self.refusal)
        answer = pb.ModelInferResponse()
        for name, (dtype, shape, data) in ({"class_names": self.labels} if labels else self.tensors).items():
            answer.outputs.add(name=name, datatype=dtype, shape=shape)
            answer.raw_output_contents.append(data)
        if not labels and self.without:
            del answer.raw_output_contents[-self.without :]
        return answer


@contextlib.contextmanager
def serving(service: Service) -> Iterator[str]:
    """The URL of a server of ``service``."""
    server = grpc.server(futures.ThreadPoolExecutor(2), compression=grpc.Compression.Gzip)
    port = server.add_insecure_port("127.0.0.1:0")
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0)


def detect(url: str, **options: Any) -> Detections:
    """One detection by threads."""
    with Detector(url, timeout=5, **options) as detector:
        return detector.detect(IMAGE)


def detect_async(url: str, **options: Any) -> Detections:
    """One detection in asyncio."""

    async def run() -> Detections:
        async with AsyncDetector(url, timeout=5, **options) as detector:
            return await detector.detect(IMAGE)

    return asyncio.run(run())


CLIENTS = pytest.mark.parametrize("ask", [detect, detect_async], ids=["threads", "asyncio"])


def changed(**tensors: tuple[str, list[int], bytes]) -> Tensors:
    return {**DETECTIONS, **tensors}


@CLIENTS
def test_what_the_service_gives_is_taken(ask: Callable[..., Detections]) -> None:
    with serving(Service()) as url:
        found = ask(url)
    assert [(item.name, item.score, item.box.tolist()) for item in found] == [("a", 0.5, [1, 2, 3, 4])]


@CLIENTS
@pytest.mark.parametrize(
    "service",
    [
        Service(changed(det_boxes=("XX", [1, 4], bytes(16)))),
        Service(changed(det_boxes=("", [1, 4], bytes(16)))),
        Service(changed(det_boxes=("FP32", [-1, -4], bytes(16)))),
        Service(changed(det_boxes=("FP32", [-1], bytes(16)))),
        Service(changed(det_boxes=("FP32", [1, 5], bytes(16)))),
        Service(changed(det_boxes=("FP32", [1, 3], bytes(13)))),
        Service(changed(det_boxes=("FP32", [2**62, 2**62, 0], b""))),
        Service(changed(num_dets=("BYTES", [1], b"\xff\xff\xff\x7f"))),
        Service(changed(num_dets=("BYTES", [1], b"abc"))),
        Service(changed(num_dets=("BYTES", [2**22 + 1], bytes(4 * (2**22 + 1))))),
        Service(without=1),
        Service(without=4),
    ],
)
def test_answer_that_no_triton_gives_is_told(ask: Callable[..., Detections], service: Service) -> None:
    with serving(service) as url, pytest.raises(ServerUnreachable, match="not Triton's"):
        ask(url)


@CLIENTS
def test_no_more_texts_are_read_than_the_timeout_has_time_for(ask: Callable[..., Detections]) -> None:
    half = ("BYTES", [1 << 21], bytes(4 << 21))
    with serving(Service(changed(a=half, b=half, c=half))) as url, pytest.raises(ServerUnreachable, match="in all"):
        ask(url)
    with serving(Service(changed(a=half, b=half))) as url:
        assert len(ask(url)) == 1
    long = ("BYTES", [9] * 100_000, bytes(4))
    with serving(Service(changed(a=long))) as url, pytest.raises(ServerUnreachable, match="a shape of 100000 dim"):
        ask(url)


@CLIENTS
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (changed(num_dets=("INT32", [1, 1], ints(1000))), "num_dets is 1000: expected 0 to 1"),
        (changed(num_dets=("INT32", [1, 1], ints(-1))), "num_dets is -1"),
        (changed(num_dets=("INT32", [0], b"")), r"num_dets \[0\]"),
        (changed(num_dets=("FP32", [1], floats(np.nan))), "num_dets is float32: expected int32"),
        (changed(num_dets=("BYTES", [1], b"\1\0\0\0x")), "num_dets is object"),
        (changed(det_boxes=("FP32", [5], bytes(20))), r"det_boxes \[5\]"),
        (changed(det_boxes=("FP32", [4, 1], bytes(16))), r"det_boxes \[4, 1\]"),
        (changed(det_boxes=("FP64", [1, 4], bytes(32))), "float64: expected float32"),
        (changed(det_boxes=("BF16", [1, 4], bytes(8))), "bfloat16: expected float32"),
        (changed(det_boxes=("FP32", [1, 1, 4], floats(0, 0, np.nan, 1))), "not finite"),
        (changed(det_boxes=("FP32", [1, 1, 4], floats(0, 0, np.inf, 1))), "not finite"),
        (changed(det_scores=("FP32", [1], floats(np.nan))), "not finite"),
        (changed(det_scores=("FP32", [0], b"")), r"det_scores \[0\]"),
        (changed(det_classes=("INT64", [1], bytes(8))), "int64: expected int32"),
        (changed(det_classes=("INT32", [1], ints(-3))), "classes from -3 to 0"),
        (changed(det_classes=("INT32", [1], ints(2**31 - 1))), "to 2147483647: expected 0 to 65535"),
        ({name: value for name, value in DETECTIONS.items() if name != "det_boxes"}, "no output 'det_boxes'"),
        ({}, "no output 'num_dets': found none"),
    ],
)
def test_what_is_no_detection_is_the_services_failure(
    ask: Callable[..., Detections], tensors: Tensors, words: str
) -> None:
    with serving(Service(tensors)) as url:
        with pytest.raises(ServerError, match=rf"'yolox' at {url} cannot be used: .*{words}") as caught:
            ask(url)
        assert str(caught.value).isprintable()


def test_only_the_image_whose_answer_cannot_be_used_fails() -> None:
    service = Service(changed(num_dets=("INT32", [1, 1], ints(7))))
    with serving(service) as url, Detector(url, timeout=5) as detector:
        assert [type(result) for result in detector.detect([IMAGE] * 2, on_error="return")] == [ServerError] * 2


@CLIENTS
def test_labels_are_text_and_shown_as_such(ask: Callable[..., Detections]) -> None:
    with serving(Service(labels=("BYTES", [1, 1], b"\3\0\0\0\xff\x1bc"))) as url:
        assert ask(url)[0].name == "\ufffd\\x1bc"
    with (
        serving(Service(labels=("INT32", [2], ints(5, 10**9)))) as url,
        pytest.raises(ServerError, match="class_names is int32: expected BYTES"),
    ):
        ask(url)


@CLIENTS
def test_large_answer_ends_at_the_limit_packed_or_not(ask: Callable[..., Detections]) -> None:
    # The server packs both; noise stays as large as it was.
    noise = np.random.default_rng(0).bytes(3 * MIB)
    for data in (bytes(3 * MIB), noise):
        with serving(Service({**DETECTIONS, "more": ("UINT8", [3 * MIB], data)})) as url:
            with pytest.raises(AnswerTooLarge, match=r"more than 2097152 bytes.* raise max_answer_bytes"):
                ask(url, max_answer_bytes=2 * MIB)
            assert len(ask(url, max_answer_bytes=4 * MIB)) == 1
            assert len(ask(url)) == 1


@CLIENTS
def test_nothing_is_to_be_raised_where_grpc_takes_no_more(
    ask: Callable[..., Detections], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As though gRPC took less than its 2 GiB, which would take long.
    monkeypatch.setattr(grpc_calls, "LARGEST_MESSAGE", 2 * MIB)
    service = Service({**DETECTIONS, "more": ("UINT8", [3 * MIB], bytes(3 * MIB))})
    for most in (2 * MIB, 8 * MIB):
        with (
            serving(service) as url,
            pytest.raises(AnswerTooLarge, match="than 2097152 bytes, the most that gRPC") as caught,
        ):
            ask(url, max_answer_bytes=most)
        assert "max_answer_bytes" not in str(caught.value)


@CLIENTS
def test_description_may_be_a_64th(ask: Callable[..., Detections]) -> None:
    with serving(Service(description="x" * (3 * MIB // 2))) as url:
        with pytest.raises(AnswerTooLarge, match=r"the description from .* more than 1048576 bytes"):
            ask(url, max_answer_bytes=64 * MIB)
        assert len(ask(url, max_answer_bytes=128 * MIB)) == 1
    with serving(Service(description="x" * (MIB // 2))) as url:
        assert len(ask(url, max_answer_bytes=MIB)) == 1  # and 1 MiB in any case


@CLIENTS
def test_refusal_has_nothing_that_a_terminal_obeys(ask: Callable[..., Detections]) -> None:
    with serving(Service(refusal="\x1b[2J in a box\x07")) as url, pytest.raises(InvalidRequest) as caught:
        ask(url)
    assert str(caught.value).isprintable()
    assert r"\x1b[2J in a box\x07" in str(caught.value)


@CLIENTS
def test_what_the_server_cancels_is_not_called_cancelled_by_the_caller(ask: Callable[..., Detections]) -> None:
    """A task of asyncio would take it for its own end, and say nothing."""
    ends = Service(refusal="CANCELLED", status=grpc.StatusCode.CANCELLED)
    with serving(ends) as url, pytest.raises(ServerNotReady, match="it has cancelled a call, as where it ends"):
        ask(url, retry=Retry(attempts=1))


def test_a_client_that_is_closed_under_a_call_has_cancelled_it_itself() -> None:
    held = threading.Event()
    with serving(Service(held=held)) as url, futures.ThreadPoolExecutor(1) as pool:
        detector = Detector(url, timeout=5)
        call = pool.submit(detector.detect, IMAGE)
        assert held.wait(10)
        detector.close()
        with pytest.raises(Cancelled):
            call.result()
