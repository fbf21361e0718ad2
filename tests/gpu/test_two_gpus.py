"""Several GPUs: an instance on each, on its own device."""

from __future__ import annotations

import re
import subprocess
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
