"""Where tensors lie between Triton and its models: system and CUDA shared memory, and from one model to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.utils.cuda_shared_memory as cuda_shm
import tritonclient.utils.shared_memory as system_shm
from grpc import insecure_channel
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests import onnx_models
from tests.gpu.conftest import BuildPlan
from tests.gpu.serving import INPUTS_ON_THE_GPU, parameters, place
from tests.gpu.test_engine import FP32, pixels, reference
from tests.server.conftest import ONE_LINE
from tests.server.running import Running, running
from tests.server.test_plain_models import infer, together

# A model of Triton's own Python backend that says where its input is: 1 on the GPU, 0 on the host.
PROBE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        seen = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "x")
            on_gpu = np.full((tensor.shape()[0], 1), 0 if tensor.is_cpu() else 1, np.int32)
            seen.append(pb_utils.InferenceResponse([pb_utils.Tensor("on_gpu", on_gpu)]))
        return seen
"""
PROBE_CONFIG = """backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1024 ] }
output { name: "on_gpu" data_type: TYPE_INT32 dims: [ 1 ] }
"""
CHAIN = """platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1024 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1024 ] }
output { name: "on_gpu" data_type: TYPE_INT32 dims: [ 1 ] }
ensemble_scheduling {
  step { model_name: "FIRST" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } }
  step { model_name: "second" model_version: -1
         input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
  step { model_name: "probe" model_version: -1
         input_map { key: "x" value: "between" } output_map { key: "on_gpu" value: "on_gpu" } }
}
"""


@pytest.fixture(scope="module")
def chains(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two ensembles of x -> 2x -> 4x, one whose first step leaves its output on the GPU, and the probe."""
    onnx = onnx_models.save(
        tmp_path_factory.mktemp("onnx") / "double.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 1024])],
        [("y", TensorProto.FLOAT, ["batch", 1024])],
    )
    plan = build(onnx, batch_sizes=(1, 4, 8))
    repository = tmp_path_factory.mktemp("chains")
    place(plan, repository, "leaves", ONE_LINE + INPUTS_ON_THE_GPU + parameters(OUTPUT_MEMORY="gpu"))
    # More batches of an execution than slots.
    single = ONE_LINE + "max_batch_size: 8\ndynamic_batching {}\n" + INPUTS_ON_THE_GPU
    place(plan, repository, "keeps", single + parameters(OUTPUT_MEMORY="gpu", SLOTS="1", BUCKETS="1"))
    place(plan, repository, "copies", ONE_LINE)
    place(plan, repository, "second", ONE_LINE + INPUTS_ON_THE_GPU)
    same = onnx_models.save(
        tmp_path_factory.mktemp("onnx") / "same.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.BFLOAT16, ["batch", 1024])],
        [("y", TensorProto.BFLOAT16, ["batch", 1024])],
    )
    place(build(same, batch_sizes=(1, 4)), repository, "bf16_leaves", ONE_LINE + parameters(OUTPUT_MEMORY="gpu"))
    place(build(same, batch_sizes=(1, 4)), repository, "bf16")
    (repository / "probe" / "1").mkdir(parents=True)
    (repository / "probe" / "1" / "model.py").write_text(PROBE)
    (repository / "probe" / "config.pbtxt").write_text(PROBE_CONFIG + INPUTS_ON_THE_GPU)
    for name, first in (("on_the_gpu", "leaves"), ("kept_on_the_gpu", "keeps"), ("by_the_host", "copies")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(CHAIN.replace("FIRST", first))
    with running(repositories=[repository], extra=["--cuda-memory-pool-byte-size=0:67108864"]) as started:
        yield started


def rows(items: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(items, 1024)).astype(np.float32)


@pytest.mark.parametrize(("ensemble", "on_gpu"), [("on_the_gpu", 1), ("by_the_host", 0)])
def test_an_output_reaches_the_next_model_where_it_was_left(chains: Running, ensemble: str, on_gpu: int) -> None:
    for items in (1, 3, 8):
        got = infer(chains, ensemble, x=rows(items, items))
        np.testing.assert_array_equal(got.as_numpy("y"), rows(items, items) * 4)
        np.testing.assert_array_equal(got.as_numpy("on_gpu"), np.full((items, 1), on_gpu))


def test_outputs_left_on_the_gpu_are_not_overwritten_by_the_batches_that_follow(chains: Running) -> None:
    def client_loop(seed: int) -> int:
        for i in range(40):
            data = rows(1 + (seed + i) % 8, seed * 1000 + i)
            np.testing.assert_array_equal(infer(chains, "on_the_gpu", x=data).as_numpy("y"), data * 4)
        return 40

    assert together([lambda seed=seed: client_loop(seed) for seed in range(8)]) == [40] * 8


def test_outputs_of_several_batches_stay_on_the_gpu_whoever_reuses_their_slot(chains: Running) -> None:
    def client_loop(seed: int) -> int:
        for i in range(40):
            data = rows(1, seed * 1000 + i)
            got = infer(chains, "kept_on_the_gpu", x=data)
            np.testing.assert_array_equal(got.as_numpy("y"), data * 4)
            np.testing.assert_array_equal(got.as_numpy("on_gpu"), [[1]])
        return 40

    assert together([lambda seed=seed: client_loop(seed) for seed in range(16)]) == [40] * 16


def test_a_client_gets_what_was_left_on_the_gpu(chains: Running) -> None:
    np.testing.assert_array_equal(infer(chains, "leaves", x=rows(5)).as_numpy("y"), rows(5) * 2)


@pytest.mark.parametrize("model", ["bf16", "bf16_leaves"])
def test_bf16_comes_in_and_goes_out_as_its_bits(chains: Running, model: str) -> None:
    bits = np.random.default_rng(1).integers(0x80, 0x7F80, (3, 1024)).astype(np.uint16)  # normal numbers
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[bits.tobytes()])
    request.inputs.add(name="x", datatype="BF16", shape=bits.shape)
    with insecure_channel(chains.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(20):
            answer = stub.ModelInfer(request, timeout=60)
            assert answer.outputs[0].datatype == "BF16"
            np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.uint16), bits.ravel())


def test_cuda_shared_memory_reaches_a_model_on_the_gpu(chains: Running) -> None:
    data = rows(3, seed=9)
    client = grpc.InferenceServerClient(chains.grpc_url)
    region = cuda_shm.create_shared_memory_region("pinstream_probe", data.nbytes, 0)
    try:
        cuda_shm.set_shared_memory_region(region, [data])
        client.register_cuda_shared_memory("pinstream_probe", cuda_shm.get_raw_handle(region), 0, data.nbytes)
        tensor = grpc.InferInput("x", list(data.shape), "FP32")
        tensor.set_shared_memory("pinstream_probe", data.nbytes)
        # What Triton hands to a model with these settings; test_engine.py shows that it is copied device to device.
        assert client.infer("probe", [tensor]).as_numpy("on_gpu").tolist() == [[1]] * 3
        np.testing.assert_array_equal(client.infer("second", [tensor]).as_numpy("y"), data * 2)
        np.testing.assert_array_equal(client.infer("on_the_gpu", [tensor]).as_numpy("y"), data * 4)
    finally:
        client.unregister_cuda_shared_memory("pinstream_probe")
        cuda_shm.destroy_shared_memory_region(region)
        client.close()


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
            np.testing.assert_allclose(got, reference(data), atol=FP32)
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
        np.testing.assert_allclose(got, reference(data), atol=FP32)
    finally:
        client.unregister_system_shared_memory("pinstream_test")
        system_shm.destroy_shared_memory_region(region)
        client.close()
