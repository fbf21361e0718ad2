"""`pinstream doctor` where there is a GPU: driver, runtime, memory, and plans held against it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pinstream import cuda
from tests import onnx_models
from tests.gpu.conftest import BuildPlan
from tests.gpu.serving import place
from tests.unit.cli.test_doctor import free_ports


def report(repository: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The checks by area and name."""
    command = [sys.executable, "-m", "pinstream_cli", "doctor", "--json", *free_ports(), "--model-repository"]
    done = subprocess.run([*command, str(repository)], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return {(check["area"], check["name"]): check for check in content["checks"]}


def test_the_gpu_is_told_and_a_plan_held_against_it(flavour: Any, build: BuildPlan, tmp_path: Path) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("needs nvidia-smi")
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    repository = tmp_path / "repository"
    place(build(onnx, batch_sizes=(1, 4)), repository, "mine")
    place(build(onnx, batch_sizes=(1, 4)), repository, "elsewhere")
    sidecar = repository / "elsewhere" / "1" / "model.json"
    content = json.loads(sidecar.read_text())
    other = "12.0" if cuda.compute_capability(0) != "12.0" else "8.9"
    content["tensorrt"].update(compute_capability=other, compute_capabilities=[other])
    sidecar.write_text(json.dumps(content))
    checks = report(repository)
    assert checks["gpu", "driver"]["status"] == "OK"
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", checks["gpu", "driver"]["found"])
    runtime = checks["gpu", "CUDA runtime"]
    assert runtime["status"] == "OK"
    assert runtime["found"].startswith(f"{cuda.runtime_version()}, ")
    gpu = checks["gpu", "GPU 0"]
    assert f"compute capability {cuda.compute_capability(0)}, " in gpu["found"]
    assert re.search(r"\d+ MiB free of \d+$", gpu["found"])
    (fits,) = (check for (area, name), check in checks.items() if area == "model mine" and name.endswith(" here"))
    assert fits["status"] == "OK", fits
    assert cuda.compute_capability(0) in fits["found"]
    (other_gpu,) = (c for (area, name), c in checks.items() if area == "model elsewhere" and name.endswith(" here"))
    assert other_gpu["status"] in ("WARN", "FIX"), other_gpu
    assert f"for compute capability {other}, and this machine has" in other_gpu["found"]
