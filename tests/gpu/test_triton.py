"""A real tritonserver with plans on the GPU: the whole service, many clients, shared memory of both kinds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.utils.cuda_shared_memory as cuda_shm
import tritonclient.utils.shared_memory as system_shm

from pinstream_cli.build import build_service
from pinstream_client import Detections, Detector
from tests import onnx_models
from tests.gpu.conftest import BuildPlan
from tests.gpu.test_engine import TF32, pixels, reference
from tests.server.conftest import ONE_LINE
from tests.server.running import Running, running
from tests.server.test_plain_models import infer, together
from tests.shared_files import shared_image, shared_model

CPU_TENSORS_ONLY = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }\n'


def place(plan: Path, repository: Path, name: str, config: str = ONE_LINE) -> None:
    """Make a plan directory a model of a repository."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    for file in plan.iterdir():
        if file.is_file():
            (version / file.name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def server(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    onnx = onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx")
    repository = tmp_path_factory.mktemp("repository")
    static = build(onnx, batch_sizes=(1, 4, 8))
    place(static, repository, "static")
    place(static, repository, "on_gpu", ONE_LINE + CPU_TENSORS_ONLY)
    place(static, repository, "two_instances", ONE_LINE + "instance_group { count: 2 kind: KIND_GPU }\n")
    place(build(onnx, max_batch=16), repository, "dynamic")
    with running(repositories=[repository], extra=["--cuda-memory-pool-byte-size=0:67108864"]) as started:
        yield started


@pytest.mark.parametrize("model", ["static", "on_gpu", "two_instances", "dynamic"])
def test_plans_are_served_by_one_line_of_configuration(server: Running, model: str) -> None:
    for items in (1, 3, 8):
        got = infer(server, model, pixels=pixels(items)).as_numpy("probabilities")
        np.testing.assert_allclose(got, reference(pixels(items)), atol=TF32)


@pytest.mark.parametrize("model", ["static", "dynamic", "two_instances"])
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
            np.testing.assert_allclose(got, expected[start : start + items], atol=TF32)
        client.close()
        return 250

    assert together([lambda seed=seed: client_loop(seed) for seed in range(8)]) == [250] * 8


def test_inputs_in_cuda_shared_memory(server: Running) -> None:
    data = pixels(3, seed=3)
    client = grpc.InferenceServerClient(server.grpc_url)
    region = cuda_shm.create_shared_memory_region("pinstream_test", data.nbytes, 0)
    try:
        cuda_shm.set_shared_memory_region(region, [data])
        client.register_cuda_shared_memory("pinstream_test", cuda_shm.get_raw_handle(region), 0, data.nbytes)
        tensor = grpc.InferInput("pixels", list(data.shape), "FP32")
        tensor.set_shared_memory("pinstream_test", data.nbytes)
        for model in ("static", "on_gpu"):
            got = client.infer(model, [tensor]).as_numpy("probabilities")
            np.testing.assert_allclose(got, reference(data), atol=TF32)
    finally:
        client.unregister_cuda_shared_memory("pinstream_test")
        cuda_shm.destroy_shared_memory_region(region)
        client.close()


def test_inputs_in_system_shared_memory(server: Running) -> None:
    data = pixels(5, seed=4)
    client = grpc.InferenceServerClient(server.grpc_url)
    region = system_shm.create_shared_memory_region("pinstream_test", "/pinstream_test", data.nbytes)
    try:
        system_shm.set_shared_memory_region(region, [data])
        client.register_system_shared_memory("pinstream_test", "/pinstream_test", data.nbytes)
        tensor = grpc.InferInput("pixels", list(data.shape), "FP32")
        tensor.set_shared_memory("pinstream_test", data.nbytes)
        got = client.infer("static", [tensor]).as_numpy("probabilities")
        np.testing.assert_allclose(got, reference(data), atol=TF32)
    finally:
        client.unregister_system_shared_memory("pinstream_test")
        system_shm.destroy_shared_memory_region(region)
        client.close()


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


def test_fifty_loads_and_unloads_give_all_gpu_memory_back(build: BuildPlan, tmp_path: Path) -> None:
    from pinstream import cuda

    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    place(build(onnx, batch_sizes=(1, 2)), tmp_path / "repository", "classifier")
    with running(repositories=[tmp_path / "repository"], extra=["--model-control-mode=explicit"]) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        used = []
        for _ in range(50):
            client.load_model("classifier")
            got = infer(server, "classifier", pixels=pixels(2)).as_numpy("probabilities")
            np.testing.assert_allclose(got, reference(pixels(2)), atol=TF32)
            client.unload_model("classifier")
            deadline = time.monotonic() + 20
            while client.is_model_ready("classifier") and time.monotonic() < deadline:
                threading.Event().wait(0.02)
            used.append(cuda.memory_used())
        # The process of an unloaded model may take a moment to be gone.
        deadline = time.monotonic() + 20
        while cuda.memory_used() > min(used) and time.monotonic() < deadline:
            threading.Event().wait(0.1)
        assert cuda.memory_used() <= min(used)
        client.close()
