"""READY means fast, and comes soon: a detector of eight plans whose kernels were compiled when it was built."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pinstream_cli.build import build
from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints
from tests.gpu.conftest import lacking

ROOT = Path(__file__).resolve().parents[2]
# Seconds from tritonserver's start until YOLOX-m is READY.
MOST_S = 5.0
READY = re.compile(r"^  yolox_detector +READY +([\d.]+) s", re.MULTILINE)


def ready_after(service: Path) -> float:
    """Seconds until the detector is READY, by the server's announcement."""
    text = io.StringIO()
    with serving(service, endpoints=Endpoints.free(), console=Console(file=text, width=400), verbose=True):
        pass
    found = READY.search(text.getvalue())
    assert found, text.getvalue()
    return float(found[1])


def test_yolox_m_is_ready_within_five_seconds(
    flavour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    if importlib.util.find_spec("torch") is None:
        lacking("the network is written with PyTorch: pip install torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    onnx = tmp_path / "m.onnx"
    random = [sys.executable, "-m", "training.export_random", "--model", "m", "--size", "640", "--out", str(onnx)]
    subprocess.run(random, check=True, cwd=ROOT, timeout=200)
    service = tmp_path / "service"
    done = CliRunner().invoke(build, [str(onnx), "-o", str(service), "--plan", "--precision", "fp16"])
    assert done.exit_code == 0, done.output
    seconds = sorted(ready_after(service) for _ in range(3))
    record_property("seconds_until_ready", seconds[1])
    assert seconds[1] <= MOST_S, f"READY after {seconds} s"
