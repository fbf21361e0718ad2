"""A real tritonserver with plans on the GPU: the whole service, many clients, loads and unloads, metrics."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from pinstream_cli.yolox_service import build_service
from pinstream_client import Detections, Detector
from tests import onnx_models
from tests.gpu.conftest import BuildPlan
from tests.gpu.serving import place
from tests.gpu.test_engine import FP32, pixels, reference
from tests.server.running import Running, running
from tests.server.test_plain_models import infer, metrics, together
from tests.shared_files import shared_image, shared_model


@pytest.mark.parametrize("model", ["static", "on_gpu", "two_instances", "executions", "dynamic"])
def test_plans_are_served_by_one_line_of_configuration(server: Running, model: str) -> None:
    for items in (1, 3, 8):
        got = infer(server, model, pixels=pixels(items)).as_numpy("probabilities")
        np.testing.assert_allclose(got, reference(pixels(items)), atol=FP32)


@pytest.mark.parametrize("model", ["static", "dynamic", "two_instances", "executions"])
def test_two_thousand_random_batches_from_eight_clients_each_get_their_own_answer(server: Running, model: str) -> None:
    bank = pixels(4096, seed=7)
    expected = reference(bank)

    def client_loop(seed: int) -> int:
        rng = np.random.default_rng(seed)
        client = grpc.InferenceServerClient(server.grpc_url)
        for _ in range(250):
            items = int(rng.integers(1, 9))
            start = int(rng.integers(0, len(bank) - items))
            tensor = grpc.InferInput("pixels", [items, 3, 8, 8], "FP32")
            tensor.set_data_from_numpy(bank[start : start + items])
            got = client.infer(model, [tensor], client_timeout=60).as_numpy("probabilities")
            np.testing.assert_allclose(got, expected[start : start + items], atol=FP32)
        client.close()
        return 250

    assert together([lambda seed=seed: client_loop(seed) for seed in range(8)]) == [250] * 8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_whole_service_finds_the_dog(build: BuildPlan, tmp_path: Path, precision: str) -> None:
    build_service(shared_model(), tmp_path)
    plan = build(tmp_path / "model.onnx", precision=precision, batch_sizes=(1, 4, 8))
    assert json.loads((plan / "model.json").read_text())["labels"][16] == "dog"
    with running(plan) as service, Detector(f"grpc://{service.grpc_url}", timeout=60) as detector:
        found = detector.detect(shared_image())
        assert isinstance(found, Detections)
        names = {item.name for item in found}
        assert {"dog", "bicycle"} <= names
        assert {"car", "truck"} & names
        many = detector.detect([shared_image()] * 40)
        assert all(len(each) == len(found) for each in many)
        assert threading.active_count() < 100


def test_what_a_load_took_is_in_the_log_by_step(server: Running) -> None:
    log = " ".join(server.console.getvalue().split())
    steps = ("device", "preflight", "deserialize", "contexts", "buffers", "warm-up")
    loads = re.findall("loaded in " + ", ".join(rf"{step} (\d+) ms" for step in steps), log)
    # An engine each of `static`, `on_gpu` and `dynamic`; that of `two_instances` logs from its own process.
    assert len(loads) >= 3, log
    # The server gives up on a start that takes 120 seconds.
    assert all(0 < sum(map(int, load)) < 120_000 for load in loads), loads


MODELS, ROUNDS = 5, 10


def test_fifty_loads_and_unloads_give_all_gpu_memory_back(build: BuildPlan, tmp_path: Path) -> None:
    from pinstream import cuda

    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2))
    models = [f"classifier_{i}" for i in range(MODELS)]
    for model in models:
        place(plan, tmp_path / "repository", model)

    def once(server: Running, model: str) -> bool:
        client = grpc.InferenceServerClient(server.grpc_url)
        client.load_model(model)
        got = infer(server, model, pixels=pixels(2)).as_numpy("probabilities")
        np.testing.assert_allclose(got, reference(pixels(2)), atol=FP32)
        client.unload_model(model)
        deadline = time.monotonic() + 30
        while client.is_model_ready(model) and time.monotonic() < deadline:
            time.sleep(0.02)
        client.close()
        return True

    with running(repositories=[tmp_path / "repository"], extra=["--model-control-mode=explicit"]) as server:
        used: list[int] = []
        for _ in range(ROUNDS):
            # Side by side, which also lets loads and unloads meet.
            assert together([lambda model=model: once(server, model) for model in models]) == [True] * MODELS
            used.append(memory_left(cuda.memory_used, used[0] if used else 0))
        # The first round fills what tritonserver itself keeps.
        assert max(used[1:]) <= used[0], used


def memory_left(read: Callable[[], int], expected: int) -> int:
    """GPU memory in use once it is down to what is expected, or has stood still for two seconds.

    The processes of unloaded models take a moment to be gone.
    """
    deadline = time.monotonic() + 20
    lowest, since = read(), time.monotonic()
    while lowest > expected and time.monotonic() < deadline and time.monotonic() - since < (15 if expected else 2):
        time.sleep(0.1)
        if (now := read()) < lowest:
            lowest, since = now, time.monotonic()
    return lowest


def test_every_stage_of_a_batch_shows_in_the_server_s_metrics(server: Running) -> None:
    labels = 'device="gpu0",model="static",version="1"'
    stages = ("gather", "h2d", "compute", "d2h", "scatter")

    def counted() -> dict[str, float]:
        found = metrics(server)
        counts = {stage: found.get(f"pinstream_{stage}_duration_us_count{{{labels}}}", 0) for stage in stages}
        counts["sizes"] = found.get(f"pinstream_batch_size_count{{{labels}}}", 0)
        counts["graphs"] = found.get(f"pinstream_graph_launches{{{labels}}}", 0)
        counts["buckets"] = sum(v for k, v in found.items() if k.startswith("pinstream_batches{") and '"static"' in k)
        return counts

    before = counted()
    for _ in range(6):
        infer(server, "static", pixels=pixels(1))
    deadline = time.monotonic() + 10
    while (grown := {k: v - before[k] for k, v in counted().items()}) != dict.fromkeys(before, 6.0):
        assert time.monotonic() < deadline, grown
        time.sleep(0.1)
    found = metrics(server)
    for stage in stages:
        # Microseconds, by CUDA events: this model's stages take some of them, and no second.
        mean = (
            found[f"pinstream_{stage}_duration_us_sum{{{labels}}}"]
            / found[f"pinstream_{stage}_duration_us_count{{{labels}}}"]
        )
        assert 0.5 < mean < 1e6, (stage, mean)
