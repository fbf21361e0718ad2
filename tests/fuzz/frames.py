"""Bytes for a port: requests over HTTP and gRPC that are cut short, larger than they say, or smaller.

What is around the lie is right, so that it gets as far as it can.
"""

from __future__ import annotations

import json
import random

from tritonclient.grpc import service_pb2

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_LENGTHS = (-1, 0, 1, 100, 2**31 - 1, 2**32 - 1, 10**12)


def http_request(rng: random.Random) -> bytes:
    """A good request of HTTP in which one of body, length, header's length or chunk is not what it should be."""
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    if rng.random() < 0.5:
        body = json.dumps({"inputs": [{**pixels, "data": [0.5] * 192}]}).encode()
        head, extra = body, ""
    else:
        head = json.dumps({"inputs": [{**pixels, "parameters": {"binary_data_size": 768}}]}).encode()
        body = head + bytes(768)
        extra = f"Inference-Header-Content-Length: {_about(len(head), rng)}\r\n"
    if rng.random() < 0.3:
        size = rng.choice((b"%x" % len(body), b"ffffffff", b"-1", b"", b"0"))
        return (
            _http_head("Transfer-Encoding: chunked\r\n" + extra) + size + b"\r\n" + _cut(body, rng) + b"\r\n0\r\n\r\n"
        )
    return _http_head(f"Content-Length: {_about(len(body), rng)}\r\n{extra}") + _cut(body, rng)


def grpc_call(rng: random.Random) -> bytes:
    """A call of gRPC in which a message, its length, a frame or a frame's length is not what it should be."""
    message = _message()
    if rng.random() < 0.2:
        # More than the server has said that it takes before it says so again.
        message += bytes(rng.choice((70_000, 1_000_000)))
    prefix = bytes((rng.choice((0, 0, 0, 1, 255)),)) + (_about(len(message), rng) % 2**32).to_bytes(4, "big")
    data = _cut(prefix + message, rng)
    pieces = [data[i : i + 16_384] for i in range(0, len(data), 16_384)] or [b""]
    out = _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, _request_headers())
    for piece in pieces[:-1]:
        out += _frame(_DATA, 0, 1, piece)
    length = len(pieces[-1]) if rng.random() < 0.7 else rng.choice((0, 1, 70_000, 2**24 - 1))
    return out + _frame(_DATA, rng.choice((0, _END_STREAM)), 1, pieces[-1], length)


def _message() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="classifier")
    request.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
    request.raw_input_contents.append(bytes(768))
    return bytes(request.SerializeToString())


def _about(length: int, rng: random.Random) -> int:
    return length if rng.random() < 0.5 else rng.choice((length - 1, length + 1, *_LENGTHS))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data if rng.random() < 0.5 else data[: rng.randrange(len(data))]


def _http_head(headers: str) -> bytes:
    line = "POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    return f"{line}{headers}\r\n".encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _request_headers() -> bytes:
    """The headers of a call, none of them compressed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    out = b""
    for name, value in fields.items():
        out += b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    return out
