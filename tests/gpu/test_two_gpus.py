"""Several GPUs: an instance on each, on its own device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import onnx_models
from tests.gpu.conftest import VISIBLE, BuildPlan
from tests.gpu.serving import place
from tests.gpu.test_engine import FP32, pixels, reference
from tests.server.conftest import ONE_LINE
from tests.server.running import Running, running
from tests.server.test_plain_models import infer, metrics, together


def batches_by_device(server: Running) -> dict[str, float]:
    """Batches that each device's instance says it has run."""
    found: dict[str, float] = {}
    for series, value in metrics(server).items():
        if series.startswith("pinstream_batch_size_count{") and (device := re.search(r'device="(\w+)"', series)):
            found[device[1]] = found.get(device[1], 0) + value
    return found


def memory_used() -> list[int]:
    """MiB in use on each GPU of the machine, whatever this process may see."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.usefixtures("flavour")
def test_every_gpu_gets_an_instance_and_answers(
    build: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(before := memory_used())
    if count < 2:
        pytest.skip("needs two GPUs")
    monkeypatch.delenv(VISIBLE)
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    place(plan, tmp_path / "repository", "everywhere", ONE_LINE + "instance_group { kind: KIND_GPU }\n")
    with running(repositories=[tmp_path / "repository"]) as server:

        def client_loop(seed: int) -> bool:
            for i in range(50):
                data = pixels(1 + (seed + i) % 4, seed * 100 + i)
                got = infer(server, "everywhere", pixels=data).as_numpy("probabilities")
                np.testing.assert_allclose(got, reference(data), atol=FP32)
            return True

        assert together([lambda seed=seed: client_loop(seed) for seed in range(8)]) == [True] * 8
        devices = {f"gpu{index}" for index in range(count)}
        deadline = time.monotonic() + 10
        while set(found := batches_by_device(server)) != devices and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(found) == devices
        assert min(found.values()) > 0
        # Each instance has its context and its buffers on the device it names.
        for index, used in enumerate(memory_used()):
            assert used - before[index] > 200, f"nothing of the model is on GPU {index}"


@pytest.mark.usefixtures("flavour")
def test_an_input_may_lie_on_another_gpu(build: BuildPlan, tmp_path: Path) -> None:
    """In a process of its own: CUDA sees what is visible when it is first used."""
    if len(memory_used()) < 2:
        pytest.skip("needs two GPUs")
    plan = build(onnx_models.two_by_two(tmp_path / "m.onnx"), batch_sizes=(2,))
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_OTHER_GPU, str(plan)],
        env={name: value for name, value in os.environ.items() if name != VISIBLE},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


FROM_THE_OTHER_GPU = """
import sys
from pathlib import Path
import numpy as np
from pinstream import cuda
from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines import find_model_file, open_engine
from pinstream.loop import Loop
from pinstream.options import Options

options = Options(device=0)
engine = open_engine(find_model_file(Path(sys.argv[1]), options), options)
right = np.arange(8).reshape(2, 4)
cuda.set_device(1)
memory = cuda.DeviceAllocation(right.nbytes)
cuda.copy("placing a test's input", memory.pointer, right.ctypes.data, right.nbytes)
cuda.set_device(0)
inputs = {"left": np.ones((2, 4), np.float32), "right": DeviceArray(memory.pointer, right.shape, right.dtype, 1)}
(got,) = Loop(engine).run([Request(inputs, 2, frozenset({"sum", "double"}))])
assert got.error is None, got.error
np.testing.assert_array_equal(np.asarray(got.outputs["double"]), right * 2)
np.testing.assert_array_equal(np.asarray(got.outputs["sum"]), right + 1)
memory.free()
engine.close()
"""
