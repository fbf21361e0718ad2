"""Any ONNX model, served by the one line `backend: "pinstream"`."""

from __future__ import annotations

import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests import onnx_models
from tests.server.conftest import add_model
from tests.server.running import Reached, Running, running

BACKEND = Path(__file__).resolve().parents[2] / "backend" / "pinstream"


def infer(server: Reached, model: str, outputs: list[str] | None = None, protocol: Any = grpc, **arrays: Any) -> Any:
    """One request; gives tritonclient's result."""
    url = server.grpc_url if protocol is grpc else server.http_url
    client = protocol.InferenceServerClient(url)
    inputs = []
    for name, array in arrays.items():
        tensor = protocol.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    requested = None if outputs is None else [protocol.InferRequestedOutput(name) for name in outputs]
    result = (
        client.infer(model, inputs, outputs=requested, client_timeout=60)
        if protocol is grpc
        else client.infer(model, inputs, outputs=requested)
    )
    client.close()
    return result


def configuration(server: Running, model: str) -> Any:
    """A model's completed configuration."""
    client = grpc.InferenceServerClient(server.grpc_url)
    config = client.get_model_config(model).config
    client.close()
    return config


def pixels(items: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(items, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    """The classifier in ONNX Runtime, without a server."""
    path = onnx_models.classifier(tmp_path_factory.mktemp("reference") / "classifier.onnx")
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
@pytest.mark.parametrize(
    ("model", "items"),
    [("classifier", 1), ("classifier", 8), ("static_4", 3), ("static_4_of_16", 15), ("bucketed", 1), ("bucketed", 61)],
)
def test_a_classifier_answers_what_onnx_runtime_does(
    plain: Running, reference: ort.InferenceSession, protocol: Any, model: str, items: int
) -> None:
    data = pixels(items, seed=items)
    got = infer(plain, model, protocol=protocol, pixels=data).as_numpy("probabilities")
    np.testing.assert_allclose(got, reference.run(None, {"pixels": data})[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "max_batch_size", "dynamic"),
    [
        ("classifier", 8, True),
        ("classifier_4", 4, True),
        ("static_4", 4, True),
        ("bucketed", 64, True),
        ("whole", 0, False),
    ],
)
def test_the_configuration_is_completed_from_the_model(
    plain: Running, model: str, max_batch_size: int, dynamic: bool
) -> None:
    config = configuration(plain, model)
    assert config.max_batch_size == max_batch_size
    assert config.HasField("dynamic_batching") == dynamic
    assert config.input
    assert config.output


def test_a_reshaped_input(plain: Running, reference: ort.InferenceSession) -> None:
    got = infer(plain, "reshaped", pixels=pixels(3).reshape(3, 192)).as_numpy("probabilities")
    np.testing.assert_allclose(got, reference.run(None, {"pixels": pixels(3)})[0], rtol=1e-5)


def test_two_inputs_and_two_outputs(plain: Running) -> None:
    left, right = np.ones((3, 4), np.float32) * 0.5, np.arange(12, dtype=np.int64).reshape(3, 4)
    result = infer(plain, "two_by_two", left=left, right=right)
    np.testing.assert_array_equal(result.as_numpy("sum"), left + right)
    np.testing.assert_array_equal(result.as_numpy("double"), right * 2)


def test_only_the_requested_output_comes_back(plain: Running) -> None:
    left, right = np.ones((1, 4), np.float32), np.ones((1, 4), np.int64)
    result = infer(plain, "two_by_two", outputs=["double"], left=left, right=right)
    assert result.as_numpy("sum") is None
    np.testing.assert_array_equal(result.as_numpy("double"), right * 2)


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
def test_every_data_type_passes_through(plain: Running, protocol: Any) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        "in_BOOL": rng.integers(0, 2, (2, 3)).astype(bool),
        "in_UINT8": rng.integers(0, 256, (2, 3)).astype(np.uint8),
        "in_INT32": rng.integers(-(2**31), 2**31, (2, 3)).astype(np.int32),
        "in_INT64": rng.integers(-(2**63), 2**63 - 1, (2, 3)),
        "in_FP16": rng.normal(size=(2, 3)).astype(np.float16),
        "in_FP32": rng.normal(size=(2, 3)).astype(np.float32),
        "in_BYTES": np.array([["", "plain", "häßlich"], ["a" * 5000, "\n", "0"]], object),
    }
    encoded = {**arrays, "in_BYTES": np.vectorize(str.encode, otypes=[object])(arrays["in_BYTES"])}
    result = infer(plain, "identity", protocol=protocol, **encoded)
    for name, array in encoded.items():
        np.testing.assert_array_equal(result.as_numpy(name.replace("in_", "out_")), array)


def test_a_model_without_a_batch_dimension(plain: Running) -> None:
    a, b = np.arange(3, dtype=np.float32), np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(infer(plain, "whole", a=a, b=b).as_numpy("outer"), np.outer(a, b))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": np.zeros((1, 3, 8, 9), np.float32)}, "pixels"),
        ({"pixels": np.zeros((1, 3, 8, 8), np.float64)}, "FP64"),
        ({"pixels": np.zeros((9, 3, 8, 8), np.float32)}, "<= 8"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "image"),
    ],
)
def test_a_wrong_request_is_an_invalid_argument(plain: Running, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        infer(plain, "classifier", **arrays)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "Traceback" not in str(caught.value)


def together(calls: list[Any]) -> list[Any]:
    """Run calls at the same time; gives each one's result or exception."""
    outcomes: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            outcomes[i] = calls[i]()
        except Exception as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return outcomes


def executions(server: Running, model: str) -> int:
    client = grpc.InferenceServerClient(server.grpc_url)
    count = client.get_inference_statistics(model).model_stats[0].execution_count
    client.close()
    return int(count)


def test_a_bad_request_does_not_fail_its_neighbours_in_the_batch(plain: Running) -> None:
    data = [np.full((1, 4), i, np.float32) for i in range(5)]
    invalid = np.array([[b"\xff\xfe"] * 3], object)
    before = executions(plain, "dynamic_width")
    # Width 13 makes the engine itself fail; Triton batches requests of one width only.
    calls: list[Any] = [lambda row=row: infer(plain, "dynamic_width", row=row).as_numpy("doubled") for row in data]
    calls.append(lambda: infer(plain, "dynamic_width", row=np.ones((1, 13), np.float32)))
    outcomes = together(calls)
    for row, outcome in zip(data, outcomes, strict=False):
        np.testing.assert_array_equal(outcome, row * 2)
    assert isinstance(outcomes[-1], InferenceServerException)
    assert executions(plain, "dynamic_width") - before < len(calls), (
        "nothing was executed together: the test shows nothing"
    )

    types = {"BOOL": "?", "UINT8": "u1", "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4"}
    good: dict[str, Any] = {f"in_{name}": np.zeros((1, 3), code) for name, code in types.items()}
    text = np.array([[b"a", b"b", b"c"]], object)
    calls = [lambda: infer(plain, "identity", **good, in_BYTES=text).as_numpy("out_BYTES") for _ in range(6)]
    calls.insert(3, lambda: infer(plain, "identity", **good, in_BYTES=invalid))
    outcomes = together(calls)
    refused = outcomes.pop(3)
    assert refused.status() == "StatusCode.INVALID_ARGUMENT"
    assert "'in_BYTES', element 0 is not UTF-8 text" in str(refused)
    for outcome in outcomes:
        np.testing.assert_array_equal(outcome, text)


def test_an_engine_error_is_internal_and_without_a_traceback(plain: Running) -> None:
    with pytest.raises(InferenceServerException, match=r"ONNX Runtime: .*out of data bounds") as caught:
        infer(plain, "dynamic_width", row=np.ones((1, 13), np.float32))
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "Traceback" not in str(caught.value)
    np.testing.assert_array_equal(infer(plain, "dynamic_width", row=np.ones((2, 3), np.float32)).as_numpy("doubled"), 2)


def test_many_clients_at_once_each_get_their_own_answer(plain: Running, reference: ort.InferenceSession) -> None:
    def client_loop(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for i in range(25):
            data = pixels(int(rng.integers(1, 12)), seed=seed * 100 + i)
            got = infer(plain, "static_4_of_16", pixels=data).as_numpy("probabilities")
            np.testing.assert_allclose(got, reference.run(None, {"pixels": data})[0], rtol=1e-4, atol=1e-6)
        return 25

    assert together([lambda seed=seed: client_loop(seed) for seed in range(6)]) == [25] * 6


def test_a_cancelled_request_is_not_answered_and_costs_its_neighbours_nothing(plain: Running) -> None:
    data = np.zeros((8, 512, 512), np.float32)
    client = grpc.InferenceServerClient(plain.grpc_url)
    tensor = grpc.InferInput("x", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data)
    done: list[Any] = []
    calls = [client.async_infer("slow", [tensor], lambda result, error: done.append(error or result)) for _ in range(4)]
    calls[-1].cancel()
    for _ in range(600):
        if len(done) == 4:
            break
        threading.Event().wait(0.1)
    client.close()
    assert sum(isinstance(outcome, InferenceServerException) for outcome in done) == 1
    assert "CANCELLED" in next(str(o.status()) for o in done if isinstance(o, InferenceServerException))


def metrics(server: Reached) -> dict[str, float]:
    """All series of the server by name and labels."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_batches_show_in_the_servers_metrics(plain: Running) -> None:
    labels = 'device="cpu",model="bucketed",version="1"'

    def counted() -> dict[str, float]:
        found = metrics(plain)
        return {
            "padding": found.get(f"pinstream_padding_items{{{labels}}}", 0),
            "eights": sum(v for k, v in found.items() if "batches" in k and "bucketed" in k and 'bucket="8"' in k),
            "sizes": found.get(f"pinstream_batch_size_count{{{labels}}}", 0),
            "compute": found.get(f"pinstream_compute_duration_us_count{{{labels}}}", 0),
        }

    before = counted()
    infer(plain, "bucketed", pixels=pixels(15))
    deadline = time.monotonic() + 10
    expected = {"padding": 1, "eights": 2, "sizes": 2, "compute": 2}
    while (grown := {k: v - before[k] for k, v in counted().items()}) != expected and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    assert grown == expected


OLDER_TRITON = f"""
import json, sys
import triton_python_backend_utils as pb_utils
sys.path.insert(0, {str(BACKEND)!r})
import model
class TritonPythonModel(model.TritonPythonModel):
    @staticmethod
    def auto_complete_config(config):
        return config
    def initialize(self, args):
        del pb_utils.MetricFamily.HISTOGRAM
        config = dict(json.loads(args["model_config"]), default_model_filename="model.onnx")
        super().initialize(dict(args, model_config=json.dumps(config)))
"""
TENSORS = """
max_batch_size: 8
input { name: "pixels" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }
"""


def test_a_triton_without_histograms_has_the_counters(tmp_path: Path) -> None:
    """The Python backend got histograms in August 2024; here a process of its is without the name."""
    onnx = add_model(tmp_path, "older", 'backend: "python"' + TENSORS)
    onnx_models.classifier(onnx)
    (onnx.parent / "model.py").write_text(OLDER_TRITON)
    with running(repositories=[tmp_path]) as server:
        assert infer(server, "older", pixels=pixels(2)).as_numpy("probabilities").shape == (2, 10)
        assert "no histograms among the metrics" in server.console.getvalue()
        deadline = time.monotonic() + 10
        while not (found := [name for name in metrics(server) if name.startswith("pinstream_batches{")]):
            assert time.monotonic() < deadline, found
            threading.Event().wait(0.05)
        assert not [name for name in metrics(server) if "_duration_us" in name and name.startswith("pinstream")]


def test_a_server_without_metrics_serves_all_the_same(tmp_path: Path) -> None:
    onnx_models.classifier(add_model(tmp_path, "classifier"))
    with running(repositories=[tmp_path], extra=["--allow-metrics=false"]) as server:
        assert infer(server, "classifier", pixels=pixels(2)).as_numpy("probabilities").shape == (2, 10)
