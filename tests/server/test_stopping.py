"""SIGTERM under load: what has begun is answered, what comes later is refused, and the server ends in time."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton.server import LONGEST_STOP_S
from tests import onnx_models
from tests.fuzz.documented import documented_in
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind
from tests.server.test_plain_models import metrics

NOBODY_LISTENS = re.compile("failed to connect|Connection reset|Socket closed|recvmsg|GOAWAY")
IN_FLIGHT, ITEMS, INSTANCES = 4, 8, 1
GRACE_S = LONGEST_STOP_S


def wait_for_waiting(serve: Serve, count: int) -> None:
    """Until so many requests wait at the server for an instance."""
    name = 'nv_inference_pending_request_count{model="slow",version="1"}'
    deadline = time.monotonic() + GRACE_S
    while metrics(serve).get(name, 0) < count:
        assert time.monotonic() < deadline, metrics(serve)
        time.sleep(0.02)


def test_requests_in_flight_are_answered_and_new_ones_refused(start: Callable[..., Serve], tmp_path: Path) -> None:
    config = f"max_batch_size: {ITEMS}\ninstance_group {{ count: {INSTANCES} kind: KIND_CPU }}\n"
    onnx_models.slow(add_model(tmp_path / "models", "slow", ONE_LINE + config))
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
        # All of them are at the server, each sent in whole, and none is done.
        wait_for_waiting(serve, IN_FLIGHT - INSTANCES)
        assert not any(call.done() for call in calls), "the model is too fast for this test"
        serve.process.terminate()
        refused = []
        while serve.process.poll() is None and time.monotonic() - begun < GRACE_S:
            try:
                ask(1)
            except InferenceServerException as error:
                refused.append(error)
            threading.Event().wait(0.05)
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)
    assert serve.end(5) == 0, "it took longer than its grace"
    assert refused
    assert {error.status() for error in refused} <= {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}, refused
    # What the server says, and not the client of one that is gone.
    said = {error.message() for error in refused if not NOBODY_LISTENS.search(error.message())}
    assert all(map(documented_in, said)), said
    assert not left_behind(serve)
