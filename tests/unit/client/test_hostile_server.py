"""HTTP servers that are no Triton, or want to do harm: what they send comes to an end, and a typed error of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pinstream_client import (
    AnswerTooLarge,
    AsyncModel,
    Detector,
    InvalidRequest,
    Model,
    PinstreamError,
    ServerUnreachable,
)
from tests.network import http_answer, serving_connections

METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
}
MIB = 1 << 20
X = {"x": np.zeros(1, np.float32)}


def infer(url: str, **options: Any) -> dict[str, Any]:
    """One inference by threads."""
    with Model(url, "m", timeout=options.pop("timeout", 5), **options) as model:
        return model.infer(X)


def infer_async(url: str, **options: Any) -> dict[str, Any]:
    """One inference in asyncio."""

    async def run() -> dict[str, Any]:
        async with AsyncModel(url, "m", timeout=options.pop("timeout", 5), **options) as model:
            return await model.infer(X)

    return asyncio.run(run())


CLIENTS = pytest.mark.parametrize("ask", [infer, infer_async], ids=["threads", "asyncio"])


@contextlib.contextmanager
def http_server(
    answer: bytes | Callable[[socket.socket], None], metadata: Any = METADATA, config: Any = None
) -> Iterator[str]:
    """The URL of a server that says of its model what Triton would, unless told, and to each inference ``answer``."""

    def handle(connection: socket.socket, _: int) -> None:
        while (request := _read_request(connection)) is not None:
            if request.startswith(b"POST"):
                if callable(answer):
                    answer(connection)
                    return
                connection.sendall(answer)
            else:
                told = (config or {}) if b"/config" in request else metadata
                connection.sendall(http_answer(json.dumps(told).encode()))

    with serving_connections(handle) as netloc:
        yield f"http://{netloc}"


def _read_request(connection: socket.socket) -> bytes | None:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head


def coded(body: bytes, encoding: str) -> bytes:
    return http_answer(body).replace(b"\r\n", b"\r\nContent-Encoding: %s\r\n" % encoding.encode(), 1)


def outputs(binary: bytes = b"", **changes: Any) -> bytes:
    """An answer of one output, changed, with binary data behind it."""
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0], **changes}
    header = json.dumps({"outputs": [output]}).encode()
    length = b"\r\nInference-Header-Content-Length: %d\r\n" % len(header)
    return http_answer(header + binary).replace(b"\r\n", length, 1)


@CLIENTS
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_encoding_that_was_not_asked_for_is_refused_as_it_is(ask: Callable[..., Any], encoding: str) -> None:
    with http_server(coded(gzip.compress(b"{}"), encoding)) as url:
        with pytest.raises(ServerUnreachable, match=f"content encoding '{encoding}', which was not asked for"):
            ask(url)
        if encoding == "deflate":
            with pytest.raises(ServerUnreachable, match="which was not asked for"):
                ask(url, compression="gzip")


@CLIENTS
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bomb_is_unpacked_up_to_the_limit(ask: Callable[..., Any], encoding: Any) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = coded(pack(bytes(256 * MIB), 9), encoding)
    with http_server(bomb) as url:
        tracemalloc.start()
        try:
            with pytest.raises(AnswerTooLarge, match=r"more than 1048576 bytes.* raise max_answer_bytes"):
                ask(url, compression=encoding, max_answer_bytes=MIB)
            assert tracemalloc.get_traced_memory()[1] < 64 * MIB
        finally:
            tracemalloc.stop()


@CLIENTS
def test_unpacking_ends_with_the_timeout(ask: Callable[..., Any]) -> None:
    bomb = coded(gzip.compress(bytes(MIB), 9) * 4000, "gzip")
    with http_server(bomb) as url:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            ask(url, compression="gzip", timeout=0.5, max_answer_bytes=1 << 33)
        assert time.monotonic() - started < 2


@CLIENTS
def test_damaged_body_is_told(ask: Callable[..., Any]) -> None:
    whole = gzip.compress(b'{"outputs":[]}')
    for body in (whole[:-9], b"\x1f\x8bxxxx", b"no gzip"):
        with http_server(coded(body, "gzip")) as url, pytest.raises(ServerUnreachable, match="damaged gzip body"):
            ask(url, compression="gzip")


@CLIENTS
def test_body_of_several_gzip_members_is_one(ask: Callable[..., Any]) -> None:
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[2]}]}'
    packed = gzip.compress(body[:30]) + gzip.compress(body[30:])
    with http_server(coded(packed, "gzip")) as url:
        assert ask(url, compression="gzip")["y"].tolist() == [2]


def _endless(*first: bytes, then: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"".join(first))
        while True:
            connection.sendall(then)

    return send


@CLIENTS
@pytest.mark.parametrize(
    "send",
    [
        _endless(b"HTTP/1.1 200 OK\r\n\r\n", then=bytes(65536)),
        _endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", then=b"10000\r\n" + bytes(65536) + b"\r\n"),
    ],
    ids=["until the end", "chunked"],
)
def test_endless_body_ends_at_the_limit(ask: Callable[..., Any], send: Callable[[socket.socket], None]) -> None:
    with http_server(send) as url:
        started = time.monotonic()
        with pytest.raises(AnswerTooLarge, match="more than 2097152 bytes"):
            ask(url, timeout=30, max_answer_bytes=2 * MIB)
        assert time.monotonic() - started < 10


@CLIENTS
@pytest.mark.parametrize(
    "send",
    [
        _endless(b"HTTP/1.1 200 OK\r\n", then=b"X-A: " + b"a" * 4000 + b"\r\n"),
        _endless(b"HTTP/1.1 200 OK\r\nX-A: ", then=b"a" * 4000),
    ],
    ids=["many", "one"],
)
def test_endless_headers_are_no_http(ask: Callable[..., Any], send: Callable[[socket.socket], None]) -> None:
    with http_server(send) as url:
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match="does not speak HTTP"):
            ask(url, timeout=30)
        assert time.monotonic() - started < 10


def test_endless_lines_behind_a_body_end_at_the_limit() -> None:
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    with http_server(_endless(first, then=b"X-A: " + b"a" * 4000 + b"\r\n")) as url, pytest.raises(AnswerTooLarge):
        infer(url, timeout=30, max_answer_bytes=2 * MIB)


@CLIENTS
def test_json_may_be_a_64th(ask: Callable[..., Any]) -> None:
    told = {**METADATA, "more": ["a"] * 300_000}
    answer = outputs(struct.pack("<f", 2), parameters={"binary_data_size": 4}, data=None)
    with http_server(answer, told) as url:
        with pytest.raises(AnswerTooLarge, match=r"the JSON from .* more than 1048576 bytes"):
            ask(url, max_answer_bytes=64 * MIB)
        assert ask(url, max_answer_bytes=128 * MIB)["y"].tolist() == [2]


@CLIENTS
def test_redirection_takes_no_key_along(ask: Callable[..., Any]) -> None:
    came = []

    def handle(connection: socket.socket, _: int) -> None:
        came.append(_read_request(connection))

    with serving_connections(handle) as elsewhere:
        redirection = http_answer(b"", "307 Temporary").replace(
            b"\r\n", f"\r\nLocation: http://{elsewhere}/\r\n".encode(), 1
        )
        with http_server(redirection) as url:
            with pytest.raises(ServerUnreachable, match=f"redirects to http://{elsewhere}/, which is not followed"):
                ask(url, headers={"pinstream-key": "secret"})
            assert came == []


@CLIENTS
def test_cookies_are_not_kept(ask: Callable[..., Any]) -> None:
    heads = []

    def handle(connection: socket.socket, _: int) -> None:
        while (head := _read_request(connection)) is not None:
            heads.append(head.lower())
            body = json.dumps({} if b"/config" in head else METADATA).encode()
            answer = outputs() if head.startswith(b"POST") else http_answer(body)
            connection.sendall(answer.replace(b"\r\n", b"\r\nSet-Cookie: mine=1\r\n", 1))

    with serving_connections(handle) as netloc:
        ask(netloc.replace("127.0.0.1", "http://localhost"))  # cookies of addresses nobody keeps
    assert len(heads) == 3
    assert not [head for head in heads if b"cookie" in head]


NOT_TRITONS: dict[str, bytes] = {
    "a number that the type has not": outputs(datatype="UINT8", data=[300]),
    "a negative one": outputs(datatype="UINT32", data=[-1]),
    "a number without bounds": outputs(datatype="INT64", data=[10**30]),
    "a fraction among integers": outputs(datatype="INT32", data=[1.5]),
    "text among numbers": outputs(data=["1"]),
    "numbers among text": outputs(datatype="BYTES", data=[1]),
    "more numbers than the shape": outputs(data=[1.0, 2.0]),
    "a shape without bounds": outputs(shape=[10**30]),
    "a negative shape": outputs(shape=[-1]),
    "a shape of text": outputs(shape="ab"),
    "no shape": outputs(shape=None),
    "too many dimensions": outputs(shape=[1] * 100),
    "another type": outputs(datatype="XX"),
    "a type that is a list": outputs(datatype=["FP32"]),
    "a name that is a list": outputs(name=["y"]),
    "parameters that are a list": outputs(parameters=[1]),
    "JSON without end": http_answer(b"[" * 100_000),
    "JSON without outputs": http_answer(b"{}"),
    "JSON of another kind": http_answer(b"[]"),
    "no JSON": http_answer(b'{"outputs":"\xff\xfe"}'),
    "a size below 0": outputs(b"abcd", parameters={"binary_data_size": -4}),
    "a size beyond the end": outputs(b"abcd", parameters={"binary_data_size": 2**70}),
    "a size of text": outputs(b"abcd", parameters={"binary_data_size": "4"}),
    "less data than the shape": outputs(b"abcd", parameters={"binary_data_size": 2}),
    "bytes that nothing tells of": outputs(b"abcdefgh", parameters={"binary_data_size": 4}),
    "BYTES of a length beyond the end": outputs(
        b"\xff\xff\xff\x7f", datatype="BYTES", parameters={"binary_data_size": 4}
    ),
    "BYTES cut in a length": outputs(b"abc", datatype="BYTES", parameters={"binary_data_size": 3}),
    "BYTES of a shape without bounds": outputs(
        bytes(4), datatype="BYTES", shape=[2**40], parameters={"binary_data_size": 4}
    ),
    "a header's length below 0": outputs().replace(b"Content-Length: ", b"Content-Length: -", 1),
    "a header's length beyond the end": outputs().replace(b"Content-Length: ", b"Content-Length: 9", 1),
}


@CLIENTS
@pytest.mark.parametrize("answer", NOT_TRITONS.values(), ids=NOT_TRITONS)
def test_answer_that_no_triton_gives_is_told(ask: Callable[..., Any], answer: bytes) -> None:
    with http_server(answer) as url, pytest.raises(ServerUnreachable, match=r"not Triton's: .+") as caught:
        ask(url)
    assert str(caught.value).isprintable()


@CLIENTS
@pytest.mark.parametrize(
    "metadata",
    [
        [],
        None,
        {},
        {**METADATA, "outputs": None},
        {**METADATA, "inputs": [{"name": "x"}]},
        {**METADATA, "inputs": [{"name": ["x"], "datatype": "FP32"}]},
        {**METADATA, "inputs": [{"name": 5, "datatype": "FP32"}]},
        {**METADATA, "inputs": [{"name": "x", "datatype": "XX"}]},
        {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": "ab"}]},
        {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [float("inf")]}]},
    ],
)
def test_metadata_that_no_triton_gives_is_told(ask: Callable[..., Any], metadata: Any) -> None:
    with http_server(outputs(), metadata) as url, pytest.raises(ServerUnreachable, match="not Triton's"):
        ask(url)


def test_what_triton_gives_is_taken() -> None:
    def answer(**changes: Any) -> Any:
        data = changes.pop("binary", None)
        if data is not None:
            changes["parameters"] = {"binary_data_size": len(data)}
        with http_server(outputs(data or b"", **changes)) as url:
            return infer(url)["y"]

    assert answer(datatype="UINT8", data=[255]).tolist() == [255]
    assert answer(datatype="UINT64", data=[2**64 - 1]).tolist() == [2**64 - 1]
    assert answer(datatype="FP16", data=[1]).dtype == np.float16
    assert answer(datatype="BOOL", data=[True]).tolist() == [True]
    assert answer(datatype="BYTES", data=["a"]).tolist() == ["a"]
    assert answer(shape=[0, 3], data=[]).shape == (0, 3)
    assert answer(datatype="BYTES", shape=[2], binary=b"\1\0\0\0a\0\0\0\0").tolist() == [b"a", b""]
    assert answer(datatype="INT16", shape=[1, 1], binary=b"\1\0").tolist() == [[1]]
    assert answer(datatype="FP32", binary=struct.pack("<f", np.nan)).dtype == np.float32


@pytest.mark.parametrize(
    "nonsense",
    [
        *(b"null", b"5", b'"text"', b"[]", b"[[]]", b"[5]", b"{}", b"[" * 100_000, b'[{"name":[]}]', b'{"error":1}'),
        b'{"inputs":5,"outputs":5}',
        b'{"inputs":[{"name":5}],"outputs":[{"name":[]}]}',
        *(b'{"model_stats":5}', b'{"model_stats":[5]}', b'{"model_stats":[{"name":[]}]}'),
        b'{"model_stats":[{"name":"yolox","inference_stats":{"success":{"count":"many"}}}]}',
        b'{"model_stats":[{"name":"yolox","inference_stats":{"success":{"count":%d}}}]}' % 10**400,
        b'{"model_stats":[{"name":"yolox","inference_stats":[]}]}',
        *(b'{"ensemble_scheduling":5}', b'{"ensemble_scheduling":{"step":[5]}}'),
        b'{"ensemble_scheduling":{"step":[{"model_name":[],"output_map":{"candidates":"a"}}]}}',
        b'{"ensemble_scheduling":{"step":[{"model_name":"d","output_map":["candidates"],"input_map":["candidates"]}]},'
        b'"parameters":{"CONF":{"string_value":"much"}}}',
    ],
)
def test_nothing_that_a_server_says_of_itself_is_another_error(nonsense: bytes) -> None:
    def handle(connection: socket.socket, _: int) -> None:
        while (request := _read_request(connection)) is not None:
            connection.sendall(http_answer(nonsense, "400 No" if b"/ready " in request else "200 OK"))

    def calls(url: str) -> Iterator[Callable[[], object]]:
        with Detector(url, timeout=5) as one, Detector([url, url], timeout=5) as two:
            yield from (one.statistics, two.statistics, one.check_ready, one.class_names)
        for image in (b"a picture", np.zeros((8, 8, 3), np.uint8)):
            with Detector(url, timeout=5, transport="encoded" if isinstance(image, bytes) else "tensor") as detector:
                detector._service._names = ("a",)
                yield functools.partial(detector.detect, image)

    with serving_connections(handle) as netloc:
        for call in calls(f"http://{netloc}"):
            with contextlib.suppress(PinstreamError):  # some of it is right for some of them
                call()


@CLIENTS
def test_errors_of_the_callers_own_code_are_left_alone(ask: Callable[..., Any]) -> None:
    def headers() -> dict[str, str]:
        raise KeyError("mine")

    with http_server(outputs()) as url, pytest.raises(KeyError, match="mine"):
        ask(url, headers=headers)


@CLIENTS
@pytest.mark.parametrize(
    "body",
    [json.dumps({"error": "\x1b]0;mine\x07\x1b[2J\u202ein a\ud800 box\nAt: x.py"}).encode(), b"\x1b]0;mine\x07[2J box"],
)
def test_refusal_has_nothing_that_a_terminal_obeys(ask: Callable[..., Any], body: bytes) -> None:
    with http_server(http_answer(body, "400 \x1b[2J")) as url, pytest.raises(InvalidRequest, match="box") as caught:
        ask(url)
    assert str(caught.value).isprintable()
    assert r"\x1b]0;mine\x07" in str(caught.value)


@CLIENTS
def test_refusal_is_as_long_as_one_reads(ask: Callable[..., Any]) -> None:
    for body in (b'{"error":"%s"}' % (b"A" * 900_000), b"[" * 5_000_000):
        with http_server(http_answer(body, "400 No")) as url, pytest.raises(InvalidRequest) as caught:
            ask(url)
        assert len(str(caught.value)) < 5000
