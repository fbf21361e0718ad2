"""What becomes of a server whose log nobody takes any more: it goes on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints
from tests import onnx_models


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
