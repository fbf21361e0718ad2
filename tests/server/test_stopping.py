"""SIGTERM under load: what has begun is answered, what comes later is refused, and the server ends in time."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton.server import EXIT_TIMEOUT_S, LONGEST_STOP_S
from tests import onnx_models
from tests.fuzz.documented import documented_in
from tests.load import PICTURE, SHAPES
from tests.processes import family, still_there
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind
from tests.server.test_plain_models import metrics

NOBODY_LISTENS = re.compile("failed to connect|Connection reset|Socket closed|recvmsg|GOAWAY")
IN_FLIGHT, ITEMS, INSTANCES = 4, 8, 1
GRACE_S = LONGEST_STOP_S
# So long Triton waits at its end where that is asked for, and so long the end may take then.
PATIENCE_S = 5
ENDED_S = PATIENCE_S + GRACE_S - EXIT_TIMEOUT_S


def wait_for_waiting(serve: Serve, count: int) -> None:
    """Until so many requests wait at the server for an instance."""
    name = 'nv_inference_pending_request_count{model="slow",version="1"}'
    deadline = time.monotonic() + GRACE_S
    while metrics(serve).get(name, 0) < count:
        assert time.monotonic() < deadline, metrics(serve)
        time.sleep(0.02)


def ask_serve(serve: Serve) -> None:
    """As a user does, or a container's."""
    serve.process.terminate()


def ask_everyone(serve: Serve) -> None:
    """As systemd does with a unit (KillMode=control-group)."""
    for pid in (serve.process.pid, *(member.pid for member in family(serve).members)):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize(("share", "end"), [("off", ask_serve), ("on", ask_everyone)])
def test_requests_in_flight_are_answered_and_new_ones_refused(
    start: Callable[..., Serve], tmp_path: Path, share: str, end: Callable[[Serve], None]
) -> None:
    config = f"max_batch_size: {ITEMS}\ninstance_group {{ count: {INSTANCES} kind: KIND_CPU }}\n"
    config += f'parameters {{ key: "SHARE_ENGINE" value {{ string_value: "{share}" }} }}\n'
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
    processes = family(serve)
    assert len(processes.engines) == (share == "on")
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        begun = time.monotonic()
        calls = [pool.submit(ask, ITEMS) for _ in range(IN_FLIGHT)]
        # All of them are at the server, each sent in whole, and none is done.
        wait_for_waiting(serve, IN_FLIGHT - INSTANCES)
        assert not any(call.done() for call in calls), "the model is too fast for this test"
        end(serve)
        # As of a supervisor that signals the process and its group; the terminal's end may come with it.
        for again in (signal.SIGTERM, signal.SIGHUP):
            threading.Event().wait(0.3)
            serve.process.send_signal(again)
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
    # What comes in as gRPC closes it may cancel, without a word of Triton's.
    refused = [error for error in refused if error.status() != "StatusCode.CANCELLED"]
    assert {error.status() for error in refused} <= {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}, refused
    # What the server says, and not the client of one that is gone.
    said = {error.message() for error in refused if not NOBODY_LISTENS.search(error.message())}
    assert all(map(documented_in, said)), said
    assert not left_behind(serve)
    assert not still_there(processes.members)


def test_a_version_that_would_not_load_again_keeps_the_server_no_longer_than_its_grace(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """Triton 2.51 waits for it for as long as it waits for anything, here 5 s; docs/errors.md says so."""
    file = onnx_models.classifier(add_model(tmp_path / "models", "classifier"))
    serve = start(
        "--model-repository",
        tmp_path / "models",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--exit-timeout-secs={PATIENCE_S}",
    )
    serve.wait_for("Stop with Ctrl-C")
    file.write_bytes(b"broken")
    with grpc.InferenceServerClient(serve.grpc_url) as control:
        with pytest.raises(InferenceServerException, match="is not an ONNX model"):
            control.load_model("classifier")
        assert control.is_model_ready("classifier")
    serve.process.terminate()
    assert serve.end(ENDED_S) == 0
    assert not left_behind(serve)


PICTURES, CALLS = 8, 12


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
def test_what_an_ensemble_has_begun_is_answered_or_refused_in_words(start: Callable[..., Serve], protocol: Any) -> None:
    """Triton 2.51 ends its models after HTTP and before gRPC: there a step may refuse what the one before has done."""
    serve = start("--model", SHAPES)
    serve.wait_for("Stop with Ctrl-C")
    url = serve.grpc_url if protocol is grpc else serve.http_url
    pictures = np.array([[PICTURE.read_bytes()]] * PICTURES, np.object_)

    def ask(_: int = 0) -> list[float]:
        tensor = protocol.InferInput("image", list(pictures.shape), "BYTES")
        tensor.set_data_from_numpy(pictures)
        with protocol.InferenceServerClient(url) as client:
            return list(np.ravel(client.infer("yolox", [tensor]).as_numpy("det_scores")))

    expected = ask()
    assert len(expected)
    with ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(ask, number) for number in range(CALLS)]
        next(as_completed(calls))
        time.sleep(0.05)
        assert not all(call.done() for call in calls), "the service is too fast for this test"
        serve.process.terminate()
        ends = [call.exception() for call in calls]
    assert all(call.result() == expected for call, error in zip(calls, ends, strict=True) if not error)
    refused = [error for error in ends if isinstance(error, InferenceServerException)]
    assert len(refused) == sum(error is not None for error in ends), ends
    said = [f"{error.status()}: {error.message()}" for error in refused]
    assert {error.status() for error in refused} <= {"StatusCode.UNAVAILABLE", "503"}, said
    assert all(documented_in(error.message()) for error in refused), said
    # On a busy machine one may have waited longer than one may.
    assert protocol is grpc or all("Request timeout expired" in text for text in said), said
    assert serve.end(GRACE_S) == 0
    assert not left_behind(serve)
