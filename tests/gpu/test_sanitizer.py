"""compute-sanitizer over a short run: no access out of bounds, no error of the CUDA API. Leaks are not looked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pinstream.engines.profiles import Range
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan, lacking

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
def run(plan, outputs, options, *inputs):
    engine = open_engine(find_model_file(Path(plan), options), options)
    for answer in Loop(engine).run([Request(each, 1, frozenset(outputs)) for each in inputs]):
        assert answer.error is None, answer.error
        assert all(np.isfinite(np.asarray(answer.outputs[name].copy())).all() for name in outputs)
    engine.close()
rng = np.random.default_rng(0)
rows = [{"row": rng.normal(size=(1, width)).astype(np.float32)} for width in (1, 16, 33, 128)]
slices = [{"row": np.ones(4096, np.float32), "start": np.array([start])} for start in (4095, 100, 0, 3000, 1)]
for memory in ("cpu", "gpu"):
    options = Options(cache_dir=sys.argv[2], output_memory=memory)
    run(sys.argv[3], ["doubled"], options, *rows)
    run(sys.argv[4], ["rest"], options, *slices)
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
        lacking("needs compute-sanitizer, which comes with the CUDA toolkit")
    widths = (("row", Range((1,), (16,), (32,))), ("row", Range((33,), (64,), (128,))))
    plans = [
        build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4)),
        build(onnx_models.dynamic_width(tmp_path / "wide.onnx"), max_batch=4, shapes=widths),
        build(onnx_models.slice_from(tmp_path / "slice.onnx", 4096), shapes=(("start", Range((0,), (10,), (4095,))),)),
    ]
    # What compiles kernels is none of ours, and slow under the sanitizer.
    for plan in plans:
        load(plan)
    script = [sys.executable, "-c", SHORT_RUN, str(plans[0]), str(cache_dir), *map(str, plans[1:])]
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "backend", timeout=200, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this machine's GPU")
    assert "done" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout
