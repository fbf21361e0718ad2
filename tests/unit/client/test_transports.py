"""Both protocols against peers that are no Triton: every call ends in time, with a typed error of one line."""

import asyncio
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from pinstream_client import (
    AsyncDetector,
    Cancelled,
    DeadlineExceeded,
    Detector,
    InvalidRequest,
    Model,
    ModelNotFound,
    PinstreamError,
    Retry,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
)
from pinstream_client.options import Compression
from tests.network import closed_port, http_answer, read_http_request, serving_connections, silent_server

PROTOCOLS = ["grpc", "http"]
IMAGE = np.zeros((8, 8, 3), np.uint8)
# The metadata of a detection service that keeps its labels to itself.
_YOLOX = (
    b'{"inputs":[{"name":"image"}],"outputs":['
    b'{"name":"num_dets"},{"name":"det_boxes"},{"name":"det_scores"},{"name":"det_classes"}]}'
)
CALLS: dict[str, Callable[[Detector], object]] = {
    "detect": lambda detector: detector.detect(IMAGE),
    "detect list": lambda detector: detector.detect([IMAGE] * 3, on_error="return"),
    "class_names": lambda detector: detector.class_names(),
    "statistics": lambda detector: detector.statistics(),
    "check_ready": lambda detector: detector.check_ready(),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("call", CALLS)
def test_closed_port_is_unreachable_at_once(protocol: str, call: str) -> None:
    with closed_port() as netloc, Detector(f"{protocol}://{netloc}", timeout=20) as detector:
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=rf"{protocol}://{netloc} \(Connection refused\)") as caught:
            CALLS[call](detector)
        assert time.monotonic() - started < 5
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_asyncio_says_the_same_of_a_closed_port(protocol: str) -> None:
    async def run(url: str) -> None:
        async with AsyncDetector(url, timeout=20) as detector:
            await detector.detect(IMAGE)

    with closed_port() as netloc, pytest.raises(ServerUnreachable, match=rf"{netloc} \(Connection refused\)"):
        asyncio.run(run(f"{protocol}://{netloc}"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("call", [call for call in CALLS if call != "detect list"])
def test_silent_server_ends_with_the_timeout(protocol: str, call: str) -> None:
    with silent_server() as netloc, Detector(f"{protocol}://{netloc}", timeout=0.5) as detector:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
            CALLS[call](detector)
        assert 0.4 < time.monotonic() - started < 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_image_of_a_list_has_the_timeout_to_itself(protocol: str) -> None:
    with silent_server() as netloc, Detector(f"{protocol}://{netloc}", timeout=0.5, in_flight=4) as detector:
        results = detector.detect([IMAGE] * 4, on_error="return")
    assert [type(result) for result in results] == [DeadlineExceeded] * 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_readiness_of_what_is_not_there(protocol: str) -> None:
    with closed_port() as netloc, Detector(f"{protocol}://{netloc}", timeout=0.5) as detector:
        assert not detector.is_ready()
        started = time.monotonic()
        with pytest.raises(ServerUnreachable):
            detector.wait_ready(timeout=0.6)
        assert 0.3 < time.monotonic() - started < 2
    with silent_server() as netloc, Detector(f"{protocol}://{netloc}", timeout=0.3) as detector:
        started = time.monotonic()
        assert not detector.is_ready()
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_host_is_unreachable(protocol: str) -> None:
    with (
        Detector(f"{protocol}://no-such-host.invalid", timeout=20) as detector,
        pytest.raises(ServerUnreachable, match="host name is not known"),
    ):
        detector.check_ready()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"\x00\x01\x02" * 50, b"HTTP/1.1 200 OK\r\n"])
def test_peer_of_another_kind_that_hangs_up_is_unreachable(protocol: str, said: bytes) -> None:
    def handle(connection: socket.socket, _: int) -> None:
        connection.recv(1)
        connection.sendall(said)

    with serving_connections(handle) as netloc, Detector(f"{protocol}://{netloc}", timeout=5) as detector:
        with pytest.raises(PinstreamError) as caught:
            detector.statistics()
        assert isinstance(caught.value, ServerUnreachable)
        assert "\n" not in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closed_detector_says_so(protocol: str) -> None:
    detector = Detector(f"{protocol}://localhost")
    detector.close()
    detector.close()
    for call in CALLS.values():
        with pytest.raises(PinstreamError, match="this Detector is closed"):
            call(detector)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_image_that_cannot_be_sent_is_an_error_before_the_network(protocol: str) -> None:
    with Detector(f"{protocol}://localhost:1") as detector, pytest.raises(InvalidRequest, match="No such file"):
        detector.detect("no-such-file.jpg")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"timeout": 0}, "timeout is 0"), ({"in_flight": 0}, "in_flight is 0"), ({"in_flight": 257}, "at most 256")],
)
def test_options_out_of_range_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Detector("localhost", **options)  # type: ignore[arg-type]
    if "in_flight" in options:
        with Detector("localhost") as detector, pytest.raises(ValueError, match=words):
            detector.stream([], **options)  # type: ignore[call-overload]


def test_http_answer_that_drips_does_not_stretch_the_timeout() -> None:
    def handle(connection: socket.socket, _: int) -> None:
        read_http_request(connection)
        for byte in http_answer(b"x" * 1000):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=0.5) as detector:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            detector.statistics()
        assert time.monotonic() - started < 2


def test_http_answer_cut_short_is_unreachable() -> None:
    def handle(connection: socket.socket, _: int) -> None:
        read_http_request(connection)
        connection.sendall(http_answer(b"x" * 1000)[:-500])

    with (
        serving_connections(handle) as netloc,
        Detector(f"http://{netloc}", timeout=5) as detector,
        pytest.raises(ServerUnreachable, match="broke within the answer"),
    ):
        detector.statistics()


def test_http_page_of_another_server_is_not_tritons() -> None:
    def handle(connection: socket.socket, _: int) -> None:
        while read_http_request(connection):
            connection.sendall(http_answer(b"<html>It works!</html>"))

    with (
        serving_connections(handle) as netloc,
        Detector(f"http://{netloc}", timeout=5) as detector,
        pytest.raises(ServerUnreachable, match="not Triton's"),
    ):
        detector.statistics()


def test_server_that_has_no_room_is_asked_until_it_has_some_or_the_timeout_is_over() -> None:
    full = http_answer(b'{"error":"Exceeds maximum queue size"}', "503 Service Unavailable")
    asked: list[float] = []

    def handle(connection: socket.socket, _: int) -> None:
        while read_http_request(connection):
            asked.append(time.monotonic())
            connection.sendall(full if len(asked) < 12 else http_answer(b"{}"))

    with serving_connections(handle) as netloc:
        patient, hasty = Retry(first=0.01, longest=0.02), Retry(attempts=1)
        with Detector(f"http://{netloc}", timeout=20, retry=patient) as detector:
            detector.statistics()
        assert len(asked) == 13
        asked.clear()
        with Detector(f"http://{netloc}", timeout=20, retry=hasty) as detector, pytest.raises(ServerNotReady):
            detector.statistics()
        assert len(asked) == 1
        asked.clear()
        with Detector(f"http://{netloc}", timeout=1, retry=Retry(first=0.6)) as detector:
            started = time.monotonic()
            with pytest.raises(ServerNotReady, match="maximum queue size"):
                detector.statistics()
            assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("status", "kind"), [("400 Bad Request", InvalidRequest), ("500 Internal", ServerError), ("404 Not", ModelNotFound)]
)
def test_refusal_is_not_tried_again(status: str, kind: type[PinstreamError]) -> None:
    asked = []

    def handle(connection: socket.socket, _: int) -> None:
        while request := read_http_request(connection):
            asked.append(request)
            connection.sendall(http_answer(b'{"error":"not like this"}', status))

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=5) as detector:
        with pytest.raises(kind):
            detector.detect(IMAGE)
        assert len(asked) == 1


def test_another_server_is_asked_where_one_has_no_version_of_the_model() -> None:
    unready = http_answer(b'{"error":"Request for unknown model: \'yolox\' has no available versions"}', "404 None")
    asked: list[str] = []

    def saying(answer: bytes, name: str) -> Callable[[socket.socket, int], None]:
        def handle(connection: socket.socket, _: int) -> None:
            while read_http_request(connection):
                asked.append(name)
                connection.sendall(answer)

        return handle

    with (
        serving_connections(saying(unready, "ends")) as ends,
        serving_connections(saying(unready, "begins")) as begins,
        serving_connections(saying(http_answer(_YOLOX), "serves")) as serves,
    ):
        with Detector([f"http://{ends}", f"http://{serves}"], timeout=5) as detector:
            assert detector.class_names()
        assert asked == ["ends", "serves"]
        asked.clear()
        # Where none has it, nobody is asked again.
        with Detector([f"http://{ends}", f"http://{begins}"], timeout=5) as detector, pytest.raises(ServerNotReady):
            detector.class_names()
        assert asked == ["ends", "begins"]


@pytest.mark.parametrize(("compression", "inflate"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_http_bodies_are_compressed_both_ways(compression: Compression, inflate: Callable[[bytes], bytes]) -> None:
    answer = b'{"outputs":[{"name":"y","datatype":"INT32","shape":[2],"data":[1,2]}]}'
    packed = gzip.compress(answer) if compression == "gzip" else zlib.compress(answer)
    came = []

    def handle(connection: socket.socket, number: int) -> None:
        while request := read_http_request(connection):
            head, _, body = request.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
            while len(body) < int(fields["content-length"]):
                body += connection.recv(65536)
            if head.startswith(b"GET"):
                shape = b'{"name":"x","datatype":"UINT8","shape":[100000]}'
                connection.sendall(http_answer(b'{"inputs":[%s],"outputs":[{"name":"y","datatype":"INT32"}]}' % shape))
                continue
            came.append((fields, body))
            coded = http_answer(packed).replace(b"\r\n", b"\r\nContent-Encoding: %s\r\n" % compression.encode(), 1)
            connection.sendall(coded)

    with (
        serving_connections(handle) as netloc,
        Model(f"http://{netloc}", "any", timeout=5, compression=compression) as model,
    ):
        assert model(x=np.zeros(100_000, np.uint8))["y"].tolist() == [1, 2]
    ((fields, body),) = came
    assert fields["accept-encoding"] == fields["content-encoding"] == compression
    assert len(body) < 2000
    assert len(inflate(body)) == int(fields["inference-header-content-length"]) + 100_000


def test_http_connection_is_kept_and_used_again() -> None:
    connections = []

    def handle(connection: socket.socket, number: int) -> None:
        connections.append(number)
        while read_http_request(connection):
            connection.sendall(http_answer(b""))

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=5) as detector:
        for _ in range(5):
            detector.check_ready()
    assert connections == [0]


def test_http_answers_come_in_every_form() -> None:
    body = b'{"model_stats":[]}'
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%s\r\nd\r\n%s\r\n0\r\n\r\n" % (
        body[:5],
        body[5:],
    )
    answers = [
        chunked,
        b"HTTP/1.1 100 Continue\r\n\r\n" + http_answer(body),
        b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body),  # and closes
        b"HTTP/1.1 200 OK\r\n\r\n" + body,  # ends with the connection
    ]
    config = http_answer(b"{}")

    def handle(connection: socket.socket, number: int) -> None:
        while request := read_http_request(connection):
            if b"/config" in request:
                connection.sendall(config)
                continue
            answer = answers.pop(0)
            for start in range(0, len(answer), 7):  # in pieces
                connection.sendall(answer[start : start + 7])
            if b"100" not in answer and answer is not chunked:
                return

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=5) as detector:
        for _ in range(4):
            assert detector.statistics().models.keys() == {"yolox"}
    assert answers == []


def test_http_call_cancelled_on_a_kept_connection_ends_at_once() -> None:
    asked = threading.Event()
    posts = []

    def handle(connection: socket.socket, _: int) -> None:
        while request := read_http_request(connection):
            if request.startswith(b"GET"):
                connection.sendall(http_answer(_YOLOX))
                continue
            posts.append(request)
            asked.set()
            connection.recv(1 << 20)
            time.sleep(5)

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=20) as detector:
        call = detector.submit(b"a picture")
        assert asked.wait(5)
        started = time.monotonic()
        call.cancel()
        with pytest.raises(Cancelled):
            call.result(5)
        assert time.monotonic() - started < 1
        assert len(posts) == 1  # it was not sent again over another connection


def test_http_connection_that_the_server_closed_while_idle_is_replaced_unnoticed() -> None:
    connections = []

    def handle(connection: socket.socket, number: int) -> None:
        connections.append(number)
        read_http_request(connection)
        connection.sendall(http_answer(b""))

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=5) as detector:
        for _ in range(3):
            detector.check_ready()
            time.sleep(0.1)
    assert connections == [0, 1, 2]


def test_http_refusal_of_a_large_body_is_read_although_the_server_reads_no_further() -> None:
    refusal = http_answer(b'{"error":"request of 9 MB is too large"}', "413 Payload Too Large")

    def handle(connection: socket.socket, _: int) -> None:
        while request := read_http_request(connection):
            if request.startswith(b"GET"):
                connection.sendall(http_answer(_YOLOX))
                continue
            connection.sendall(refusal)
            connection.shutdown(socket.SHUT_WR)
            # Some of the body stays unread: closing now resets the connection under the client's feet.
            time.sleep(0.2)
            return

    with (
        serving_connections(handle) as netloc,
        Detector(f"http://{netloc}", timeout=5) as detector,
        pytest.raises(PinstreamError) as caught,
    ):
        detector.detect(np.zeros((1000, 3000, 3), np.uint8))
    assert isinstance(caught.value, InvalidRequest)
    assert "too large" in str(caught.value)
