"""A GPU whose memory is used up: an error at load that says so, answers at run time, and all is well afterwards."""

from __future__ import annotations

import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from pinstream.dlpack import DeviceArray
from pinstream.engines import find_model_file, open_engine
from pinstream.engines.profiles import Range
from pinstream.errors import PinstreamError
from pinstream.loop import Loop
from pinstream.options import Options
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.filling import filled, free_memory
from tests.gpu.serving import parameters, place
from tests.gpu.test_engine import FP32, MEGABYTE, answer, pixels, reference, request
from tests.server.conftest import ONE_LINE
from tests.server.running import Running, running
from tests.server.test_plain_models import infer
from tests.server.test_shared_engine import engine_processes

# Of the largest row of `wide`: 64 MiB in and as much out, for each of four items and each slot.
WIDEST = 16 * MEGABYTE
SAID = "out of memory"


@pytest.fixture(scope="module")
def wide(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 `row` [batch,width] -> FP32 `doubled`, whose buffers take more than 1 GiB."""
    onnx = onnx_models.save(
        tmp_path_factory.mktemp("onnx") / "wide.onnx",
        [helper.make_node("Add", ["row", "row"], ["doubled"])],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"])],
    )
    return build(onnx, max_batch=4, shapes=(("row", Range((1,), (16,), (WIDEST,))),))


@pytest.fixture(scope="module")
def small(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnx = onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx")
    return build(onnx, batch_sizes=(1, 2, 4))


def assert_doubled(engine: Any, width: int) -> None:
    row = np.arange(3 * width, dtype=np.float32).reshape(3, width)
    np.testing.assert_array_equal(answer(engine, "doubled", row=row)["doubled"], row * 2)


def test_a_load_without_memory_says_so_and_gives_back_what_it_took(wide: Path, cache_dir: Path, load: OpenPlan) -> None:
    options = Options(cache_dir=str(cache_dir))
    # The first load compiles kernels and fills the driver's own pools.
    open_engine(find_model_file(wide, options), options).close()
    with filled(leave=400 * MEGABYTE):
        before = free_memory()
        for _ in range(3):
            with pytest.raises(PinstreamError) as caught:
                open_engine(find_model_file(wide, options), options)
            text = str(caught.value)
            assert SAID in text
            # The first buffer that has no room, of a slot: there are contexts by then.
            assert f"allocating {4 * 4 * WIDEST:,} bytes on the GPU" in text
            assert "MiB free; stop what else uses the GPU, or lower max_batch_size" in text
            assert "lost its GPU context" not in text
            assert before - free_memory() <= 16 * MEGABYTE, "what the failed load took is not given back"
    assert_doubled(load(wide), 1000)


def test_what_a_failed_load_has_deserialized_goes_before_its_streams(
    wide: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's traceback, which is still there, does not keep it."""
    from pinstream import cuda
    from pinstream.engines.trt_load import load_plans

    loaded: list[weakref.ref[Any]] = []
    destroyed: list[int] = []  # for each stream the engines that were left
    destroy = cuda.Stream.destroy

    def watched_load(*args: Any) -> Any:
        plans = load_plans(*args)
        loaded.extend(weakref.ref(engine) for engine, _ in plans[1])
        return plans

    def watched_destroy(stream: cuda.Stream) -> None:
        destroyed.append(sum(engine() is not None for engine in loaded))
        destroy(stream)

    monkeypatch.setattr("pinstream.engines.tensorrt.load_plans", watched_load)
    monkeypatch.setattr(cuda.Stream, "destroy", watched_destroy)
    options = Options(cache_dir=str(cache_dir))
    with filled(leave=400 * MEGABYTE), pytest.raises(PinstreamError, match=r"allocating .* bytes on the GPU"):
        open_engine(find_model_file(wide, options), options)
    assert len(loaded) == 1
    assert destroyed == [0, 0, 0]


def test_a_loaded_engine_needs_no_more_memory(small: Path, wide: Path, load: OpenPlan) -> None:
    classifier, doubler = load(small), load(wide)
    with filled(leave=0):
        for items in (1, 3, 4, 11):
            got = answer(classifier, "probabilities", pixels=pixels(items))["probabilities"]
            np.testing.assert_allclose(got, reference(pixels(items)), atol=FP32)
        refused = 0
        for width in (16, 1000, 100_003, 3_000_001):
            # Shapes that never ran may have TensorRT compile; where it then lacks memory, the request is told.
            row = np.full((2, width), 3, np.float32)
            (found,) = Loop(doubler).run([request("doubled", row=row)])
            if found.error is None:
                np.testing.assert_array_equal(np.asarray(found.outputs["doubled"]), row * 2)
            else:
                refused += 1
                assert "lost its GPU context" not in str(found.error)
        assert not doubler.failure
    print(f"{refused} of 4 shapes that had not run before were refused")
    for width in (16, 1000, 100_003, 3_000_001):
        assert_doubled(doubler, width)


def test_outputs_that_outlast_their_slot_go_to_the_host_where_the_gpu_has_no_room(wide: Path, load: OpenPlan) -> None:
    engine = load(wide, output_memory="gpu", slots=1)
    # 64 MiB each.
    sent = [np.full((4, WIDEST // 4), i, np.float32) for i in range(3)]
    asked = [request("doubled", row=row) for row in sent]
    Loop(engine).run(asked[:1])  # so that TensorRT has its kernels
    with filled(leave=0):
        outputs = [found.outputs["doubled"] for found in Loop(engine).run(asked)]
    assert [isinstance(output, DeviceArray) for output in outputs] == [False, False, True]
    for row, output in zip(sent, outputs, strict=True):
        np.testing.assert_array_equal(output.copy(), row * 2)


def test_a_buffer_that_cannot_grow_is_empty_and_grows_later(build: BuildPlan, load: OpenPlan, small: Path) -> None:
    from pinstream import cuda
    from pinstream.engines.cuda_slot import BufferSpec, Staging

    load(small)
    staging = Staging(BufferSpec("found", "FP32", 64, host=False))
    with filled(leave=32 * MEGABYTE):
        for _ in range(2):
            with pytest.raises(cuda.CudaError, match=SAID):
                staging.grow(512 * MEGABYTE)
            assert staging.nbytes == 0
    address = staging.grow(4 * MEGABYTE)
    sent, back = np.arange(MEGABYTE, dtype=np.float32), np.zeros(MEGABYTE, np.float32)
    cuda.copy("filling a buffer", address, sent.ctypes.data, sent.nbytes)
    cuda.copy("reading a buffer", back.ctypes.data, address, sent.nbytes)
    np.testing.assert_array_equal(back, sent)
    staging.free()


def assert_classified(server: Running, model: str) -> None:
    got = infer(server, model, pixels=pixels(3)).as_numpy("probabilities")
    np.testing.assert_allclose(got, reference(pixels(3)), atol=FP32)


# With 1 GiB the process gets a CUDA context and then no buffers; with 64 MiB not even that.
@pytest.mark.parametrize("leave", [1024, 64])
def test_a_server_refuses_the_model_serves_its_others_and_takes_it_later(
    small: Path, wide: Path, tmp_path: Path, leave: int
) -> None:
    repository = tmp_path / "repository"
    place(small, repository, "neighbour")
    place(wide, repository, "wide")
    explicit = ["--model-control-mode=explicit", "--load-model=neighbour"]
    with running(repositories=[repository], extra=explicit) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        with filled(leave=leave * MEGABYTE):
            with pytest.raises(InferenceServerException) as caught:
                client.load_model("wide")
            assert SAID in caught.value.message()
            assert "stop what else uses the GPU" in caught.value.message()
            assert "lost its GPU context" not in caught.value.message()
            assert not client.is_model_ready("wide")
            for _ in range(5):
                assert_classified(server, "neighbour")
        client.load_model("wide")
        row = np.arange(2000, dtype=np.float32).reshape(2, 1000)
        np.testing.assert_array_equal(infer(server, "wide", row=row).as_numpy("doubled"), row * 2)
        assert_classified(server, "neighbour")
        client.close()


def test_a_shared_engine_that_cannot_start_again_for_want_of_memory_starts_when_there_is_some(
    small: Path, tmp_path: Path
) -> None:
    two = "instance_group { count: 2 kind: KIND_GPU }\n"
    place(small, tmp_path / "repository", "shared", ONE_LINE + two + parameters(SHARE_ENGINE="on"))
    with running(repositories=[tmp_path / "repository"]) as server:
        assert_classified(server, "shared")
        (engine,) = engine_processes(server)
        os.kill(engine, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while engine_processes(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)  # the driver takes a moment to free what a killed process had
        with filled(leave=64 * MEGABYTE):
            for _ in range(2):
                with pytest.raises(InferenceServerException) as caught:
                    infer(server, "shared", pixels=pixels(1))
                assert caught.value.status() == "StatusCode.UNAVAILABLE"
                assert SAID in caught.value.message()
        # By itself, for both instances. A process that could not load goes on saying so for a tenth of a second.
        time.sleep(1)
        for _ in range(6):
            assert_classified(server, "shared")
