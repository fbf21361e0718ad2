"""A plan whose profiles take other batches of other shapes, as trtexec makes them: each shape runs in its own sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pinstream.batching import Request
from pinstream.engines.profiles import Range
from pinstream.loop import Loop
from pinstream.plans import BuildSpec
from pinstream.plans.builder import build_engine
from pinstream.plans.jobs import PlanJob
from pinstream.plans.timing import TimingCache
from tests import onnx_models
from tests.gpu.conftest import OpenPlan

WANTED = frozenset({"doubled"})


@pytest.fixture
def plan(flavour: Any, tmp_path: Path) -> Path:
    """Rows of up to 8 numbers in batches of 1 to 16, rows of 9 to 32 in batches of 1 to 4; no sidecar."""
    onnx = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["row", "row"], ["doubled"])],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"])],
    )
    profiles = ({"row": Range((1, 1), (8, 4), (16, 8))}, {"row": Range((1, 9), (4, 16), (4, 32))})
    content, _ = build_engine(
        flavour,
        onnx.read_bytes(),
        onnx,
        PlanJob("model.plan", None, profiles),
        BuildSpec(),
        lambda file, fraction: None,
        TimingCache(flavour, "none", tmp_path),
    )
    directory = tmp_path / "1"
    directory.mkdir()
    (directory / "model.plan").write_bytes(content)
    return directory


def test_each_shape_runs_in_the_batches_that_its_profile_takes(load: OpenPlan, plan: Path) -> None:
    engine = load(plan)
    rows = [np.full((count, width), width, np.float32) for count, width in ((10, 4), (10, 32), (3, 9), (16, 8))]
    answers = Loop(engine).run([Request({"row": row}, len(row), WANTED) for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.error is None
        np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), row * 2)


def test_every_profile_has_its_kernels_before_the_first_request(load: OpenPlan, plan: Path, cache_dir: Path) -> None:
    """Also the one that does not take the largest batch."""
    kernels = cache_dir / "jit"
    load(plan).close()
    compiled = {path: path.read_bytes() for path in kernels.glob("*.cache")}
    engine = load(plan)
    for count, width in ((16, 8), (4, 16), (1, 4)):
        (answer,) = Loop(engine).run([Request({"row": np.ones((count, width), np.float32)}, count, WANTED)])
        assert answer.error is None
    engine.close()
    assert {path: path.read_bytes() for path in kernels.glob("*.cache")} == compiled


def test_graphs_that_cannot_be_are_said(load: OpenPlan, plan: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = load(plan, cuda_graphs="on")
    assert engine.captured == 0  # type: ignore[attr-defined]
    assert "CUDA_GRAPHS is on, and there are none: a graph is of one shape, and row FP32[-1] varies" in caplog.text
