"""SIGTERM under load: what has begun is answered, what comes later is refused, and the server ends in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind

IN_FLIGHT, ITEMS = 4, 8
# Triton's own exit timeout; a supervisor's grace has to be longer.
GRACE_S = 30.0


def test_requests_in_flight_are_answered_and_new_ones_refused(start: Callable[..., Serve], tmp_path: Path) -> None:
    onnx_models.slow(add_model(tmp_path / "models", "slow", ONE_LINE + f"max_batch_size: {ITEMS}\n"))
    serve = start("--model-repository", tmp_path / "models")
    serve.wait_for("Stop with Ctrl-C")
    sent = np.random.default_rng(0).normal(size=(ITEMS, 512, 512)).astype(np.float32)

    def ask(items: int) -> np.ndarray:  # type: ignore[type-arg]
        tensor = grpc.InferInput("x", [items, 512, 512], "FP32")
        tensor.set_data_from_numpy(sent[:items])
        with grpc.InferenceServerClient(serve.grpc_url) as client:
            return np.asarray(client.infer("slow", [tensor], client_timeout=60).as_numpy("y"))

    expected = ask(ITEMS)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        begun = time.monotonic()
        calls = [pool.submit(ask, ITEMS) for _ in range(IN_FLIGHT)]
        # All of them are at the server, and none is done.
        threading.Event().wait(0.3)
        assert not any(call.done() for call in calls), "the model is too fast for this test"
        serve.process.terminate()
        refused = []
        while serve.process.poll() is None and time.monotonic() - begun < GRACE_S:
            try:
                ask(1)
            except InferenceServerException as error:
                refused.append(str(error.status()))
            threading.Event().wait(0.05)
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)
    assert serve.end(5) == 0, "it took longer than its grace"
    assert refused
    assert set(refused) <= {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}, refused
    assert not left_behind(serve)
