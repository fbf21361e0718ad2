"""One request ends Triton 2.51, as docs/security.md says: `serve --restart` brings it back, a key keeps it out."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.fuzz.deadly import is_deadly, nested_data, shape_beyond_memory, small_chunks
from tests.server.serve_process import Serve, ready
from tests.server.test_restart import seconds_until
from tests.shm_region import shm_region

MODEL = "/v2/models/classifier"
DEADLY: tuple[Callable[[], bytes | Iterable[bytes]], ...] = (
    lambda: nested_data("pixels", 60_000),
    lambda: shape_beyond_memory("pixels"),
    small_chunks,
)


def post(serve: Serve, body: bytes | Iterable[bytes]) -> int:
    """The status of the answer; 0 where there is none. Of bytes in pieces the framing is theirs."""
    whole = isinstance(body, bytes)
    kind = {} if whole else {"Transfer-Encoding": "chunked"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", serve.endpoints.http, timeout=60)) as connection:
        try:
            connection.request("POST", f"{MODEL}/infer", body, {"Content-Type": "application/json", **kind})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def test_what_ends_triton_is_known_and_it_comes_back(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--restart")
    for number, make in enumerate(DEADLY, 1):
        serve.wait_for("Stop with Ctrl-C")
        seconds_until(lambda: ready(serve.endpoints, f"{MODEL}/ready"), 60)
        assert post(serve, make()) == 0, "Triton survives it: docs/security.md and tests/fuzz/deadly.py say it does not"
        seconds_until(lambda number=number: serve.text.count("RESTART") == number, 10)  # type: ignore[misc]
    seconds_until(lambda: ready(serve.endpoints, f"{MODEL}/ready"), 60)


def test_who_has_no_key_is_refused_before_the_body_is_read(
    start: Callable[..., Serve], classifier: Path, api_key_file: Path
) -> None:
    serve = start("--model", classifier, "--api-key-file", api_key_file)
    serve.wait_for("Stop with Ctrl-C")
    assert [post(serve, make()) for make in DEADLY] == [403] * len(DEADLY)
    assert serve.process.poll() is None


def test_the_fuzzer_leaves_out_what_is_known() -> None:
    assert is_deadly(nested_data("x", 200_000))
    assert is_deadly(shape_beyond_memory("x"))
    assert not is_deadly(nested_data("x", 1000))
    assert not is_deadly(b'{"shape": [-1, 2], "shape": [], "shape": [1, 3, 8, 8]}')


def row(shape: tuple[int, ...]) -> list[grpc.InferInput]:
    """The input of `dynamic_width`, of no bytes whatever the shape says."""
    tensor = grpc.InferInput("row", [1, 0], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 0), np.float32))
    tensor.set_shape(shape)
    return [tensor]


@pytest.fixture(scope="module")
def dynamic_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.dynamic_width(tmp_path_factory.mktemp("model") / "dynamic_width.onnx")


def test_a_shape_that_overflows_ends_a_plain_model_and_it_comes_back(
    start: Callable[..., Serve], dynamic_width: Path
) -> None:
    serve = start("--model", dynamic_width, "--restart")
    serve.wait_for("Stop with Ctrl-C")
    with grpc.InferenceServerClient(serve.grpc_url) as client:
        with pytest.raises(InferenceServerException):
            client.infer("dynamic_width", row((8, 2**61)), client_timeout=30)
        seconds_until(lambda: serve.text.count("RESTART") == 1, 30)
        seconds_until(lambda: ready(serve.endpoints, "/v2/models/dynamic_width/ready"), 60)


def test_no_items_are_never_answered_and_others_are(start: Callable[..., Serve], dynamic_width: Path) -> None:
    serve = start("--model", dynamic_width)
    serve.wait_for("Stop with Ctrl-C")
    with grpc.InferenceServerClient(serve.grpc_url) as client, pytest.raises(InferenceServerException) as refused:
        client.infer("dynamic_width", row((0, 0)), client_timeout=2)
    assert "Deadline" in str(refused.value), "Triton answers it: docs/security.md says it does not"
    sent = grpc.InferInput("row", [1, 3], "FP32")
    sent.set_data_from_numpy(np.ones((1, 3), np.float32))
    with grpc.InferenceServerClient(serve.grpc_url) as client:
        answer = client.infer("dynamic_width", [sent], client_timeout=10)
    assert np.array_equal(answer.as_numpy("doubled"), np.full((1, 3), 2, np.float32))
    serve.process.terminate()  # it waits for what it has not answered, for its whole grace time
    with pytest.raises(subprocess.TimeoutExpired):
        serve.end(5)
    serve.process.send_signal(signal.SIGINT)  # and no longer once somebody does not want to wait
    serve.end(10)


def send_region(client: grpc.InferenceServerClient, name: str, nbytes: int) -> None:
    """One request to `classifier` whose pixels lie in a region."""
    pixels = grpc.InferInput("pixels", [1, 3, 8, 8], "FP32")
    pixels.set_shared_memory(name, nbytes)
    client.infer("classifier", [pixels], client_timeout=30)


def test_a_region_that_its_client_cuts_short_ends_triton_and_it_comes_back(
    start: Callable[..., Serve], classifier: Path
) -> None:
    nbytes = 3 * 8 * 8 * 4
    serve = start("--model", classifier, "--restart", "--allow-client-shm")
    serve.wait_for("Stop with Ctrl-C")
    with shm_region(nbytes) as region, grpc.InferenceServerClient(serve.grpc_url) as client:
        client.register_system_shared_memory("mine", f"/{region.name}", nbytes)
        send_region(client, "mine", nbytes)
        region.write_bytes(b"")  # as by whoever opens it anew with O_TRUNC
        with pytest.raises(InferenceServerException):
            send_region(client, "mine", nbytes)
        seconds_until(lambda: "Triton ended by itself with code -7" in serve.text, 30)
    seconds_until(lambda: ready(serve.endpoints, f"{MODEL}/ready"), 60)
