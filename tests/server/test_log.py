"""What becomes of a server whose log nobody takes any more, or strangers fill: it goes on, and does not say it all."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.echo import MOST_SHOWN, WINDOW_S
from tests import onnx_models
from tests.server.serve_process import Serve


class Terminal(io.StringIO):
    """One that somebody closes."""

    closed_by_somebody = False

    def write(self, text: str) -> int:
        if self.closed_by_somebody:
            raise BrokenPipeError
        return super().write(text)


def test_requests_are_answered_when_the_terminal_is_gone(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    endpoints, terminal = Endpoints.free(), Terminal()
    pixels = grpc.InferInput("pixels", [1, 3, 8, 8], "FP32")
    pixels.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    with serving(
        model,
        endpoints=endpoints,
        extra=["--log-verbose=1"],
        console=Console(file=terminal, width=200),
        verbose=True,
    ) as server:
        terminal.closed_by_somebody = True
        before = server._log_path.stat().st_size
        with grpc.InferenceServerClient(endpoints.grpc_url) as client:
            for _ in range(200):
                client.infer("classifier", [pixels], client_timeout=20)
        # More than a pipe takes before whoever writes into it stands still.
        assert server._log_path.stat().st_size - before > 2 * 65536
        terminal.closed_by_somebody = False


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK has it without compression, of less than 127 bytes each."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def send_bad_headers(port: int, streams: int) -> None:
    """One connection to gRPC, on which each of some streams has a :scheme that there is not: a line of the log each."""
    headers = b"\x83" + literal(b":scheme", b"\x1b]0;X\x07zz") + literal(b":path", b"/x") + literal(b"te", b"trailers")
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        with contextlib.suppress(OSError):  # gRPC may have had enough of it
            for number in range(streams):
                connection.sendall(frame(1, 5, 2 * number + 1, headers))


def test_who_has_no_key_cannot_fill_what_serve_says(
    start: Callable[..., Serve], classifier: Path, api_key_file: Path
) -> None:
    serve = start("--model", classifier, "--api-key-file", api_key_file)
    serve.wait_for("Stop with Ctrl-C")
    before = len(serve.text)
    for _ in range(20):
        send_bad_headers(serve.endpoints.grpc, 100)
    serve.wait_for("more warnings or errors in 10 s: see ", 2 * WINDOW_S)
    said = serve.text[before:]
    assert "hpack_parser.cc" in said, "gRPC says nothing of it any more"
    assert len(said) < 2 * MOST_SHOWN
    (more,) = re.findall(r"^\.\.\. and ([\d,]+) more warnings or errors in 10 s: see (\S+)$", said, re.MULTILINE)
    logged = sum("hpack_parser.cc" in line for line in Path(more[1]).read_text().splitlines())
    assert int(more[0].replace(",", "")) + said.count("hpack_parser.cc") == logged
    assert logged > 1000
