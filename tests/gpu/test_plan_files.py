"""The ways in which a plan gets from its file into TensorRT."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pinstream.engines import trt_load
from pinstream.engines.flavour import Flavour
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.test_engine import answer

SIDE = 4096


def test_a_stream_reader_and_a_mapping_give_the_same_engine(
    flavour: Flavour,
    build: BuildPlan,
    load: OpenPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    """64 MiB of weights, and whole numbers so small that their sums are exact in TF32, too."""
    if not hasattr(flavour.module, "IStreamReaderV2"):
        pytest.skip(f"{flavour} has no IStreamReaderV2")
    random = np.random.default_rng(0)
    weights = random.integers(-1, 2, (SIDE, SIDE)).astype(np.float32)
    onnx = onnx_models.save(
        tmp_path / "wide.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", SIDE])],
        [("y", TensorProto.FLOAT, ["batch", SIDE])],
        {"w": weights},
    )
    plan = build(onnx, batch_sizes=(4,))
    x = random.integers(-3, 4, (4, SIDE)).astype(np.float32)

    seconds: dict[str, float] = {}

    def timed(name: str, runtime: Any, path: Path) -> Any:
        by_mapping = name == "mapping"
        began = time.perf_counter()
        engine = trt_load.by_mapping(runtime, path) if by_mapping else trt_load.by_stream_reader(flavour, runtime, path)
        seconds[name] = round(time.perf_counter() - began, 4)
        return engine

    for name in ("mapping", "stream_reader", "mapping"):  # the first one finds nothing of TensorRT's loaded
        monkeypatch.setattr(trt_load, "_deserialize", lambda _, runtime, path, name=name: timed(name, runtime, path))
        np.testing.assert_array_equal(answer(load(plan), "y", x=x)["y"], x @ weights)
    for name, took in seconds.items():
        record_property(f"seconds_by_{name}", took)
