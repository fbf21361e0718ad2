"""compute-sanitizer over a short run: no access out of bounds, no error of the CUDA API. Leaks are not looked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan

ROOT = Path(__file__).resolve().parents[2]
SHORT_RUN = """
import sys
import numpy as np
from pathlib import Path
from pinstream import cuda
from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines import find_model_file, open_engine
from pinstream.loop import Loop
from pinstream.options import Options
for memory in ("cpu", "gpu"):
    options = Options(cache_dir=sys.argv[2], output_memory=memory)
    engine = open_engine(find_model_file(Path(sys.argv[1]), options), options)
    wanted = frozenset({"probabilities"})
    data = np.ones((3, 3, 8, 8), np.float32)
    held = cuda.DeviceAllocation(data.nbytes)
    cuda.copy("placing an input", held.pointer, data.ctypes.data, data.nbytes)
    on_gpu = DeviceArray(held.pointer, data.shape, data.dtype, 0)
    requests = [Request({"pixels": array}, 3, wanted) for array in (data, on_gpu, data)]
    for answer in Loop(engine).run(requests):
        assert answer.error is None, answer.error
        assert np.isfinite(answer.outputs["probabilities"].copy()).all()
    held.free()
    engine.close()
print("done")
"""


def test_compute_sanitizer_finds_nothing(build: BuildPlan, load: OpenPlan, cache_dir: Path, tmp_path: Path) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer, which comes with the CUDA toolkit")
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    # What compiles kernels is none of ours, and slow under the sanitizer.
    load(plan)
    script = [sys.executable, "-c", SHORT_RUN, str(plan), str(cache_dir)]
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "backend", timeout=200, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this machine's GPU")
    assert "done" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout
