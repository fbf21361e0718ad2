"""What FP16 loses is noticed when a plan is built, on the real ONNX Runtime, and said to whoever builds it."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pinstream import sidecar
from pinstream.plans import BuildSpec, build_plan, cached_plan
from pinstream.plans.half import to_half
from pinstream.plans.half_check import losses_in_half
from pinstream.preflight import Gpu
from tests import onnx_models
from tests.rtx import installed_rtx

FLOAT = TensorProto.FLOAT
SHAPES = {"x": (2, 4)}


def io(width: int) -> list[tuple[str, int, Sequence[onnx_models.Dim]]]:
    return [(name, FLOAT, ["batch", width]) for name in "xy"]


def saved(path: Path, nodes: list[Any], weights: dict[str, Any] | None = None) -> Any:
    x, y = io(4)
    return onnx.load(onnx_models.save(path / "model.onnx", nodes, [x], [y], weights))


def overflowing(path: Path) -> Any:
    """Its answers are finite in FP16 as well, and wrong: x / inf is 0."""
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["large"], "scale"),
        helper.make_node("Mul", ["large", "large"], ["squares"], "square"),
        helper.make_node("Sqrt", ["squares"], ["root"]),
        helper.make_node("Sigmoid", ["root"], ["y"]),
    ]
    return saved(path, nodes, {"k": np.array(1000, np.float32)})


def test_numbers_that_outgrow_fp16_on_the_way_are_named_with_their_node(tmp_path: Path) -> None:
    model = overflowing(tmp_path)
    text = losses_in_half(model, to_half(model), SHAPES)
    assert text.startswith("on random numbers node square makes ")
    assert "FP16 ends at 65504; keep such nodes in FP32 (--fp32-node)" in text
    kept = ["square", "*oot*"]
    model.graph.node[2].name = "root"
    assert losses_in_half(model, to_half(model, kept), SHAPES) == ""


def test_nan_that_fp32_does_not_have_is_told_with_its_output(tmp_path: Path) -> None:
    """Whatever the conversion missed; here by hand, an epsilon that is gone."""
    nodes = [helper.make_node("Add", ["x", "e"], ["s"]), helper.make_node("Div", ["x", "s"], ["y"])]
    single, half = (saved(tmp_path, nodes, {"e": np.array(value, np.float32)}) for value in (1e-9, 0))
    assert "on zeros output 'y' has NaN or infinities in FP16 and none in FP32" in losses_in_half(single, half, SHAPES)
    assert losses_in_half(half, half, SHAPES) == "", "NaN in FP32 too"


def test_what_cannot_be_run_is_not_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pinstream")
    model = overflowing(tmp_path)
    half = to_half(model)
    assert losses_in_half(model, half, {"x": (2, 5, 6, 4, 0, 1)}) == ""
    model.graph.node[0].op_type = "OfAPlugin"
    assert losses_in_half(model, half, SHAPES) == ""
    assert "FP16 was not compared with FP32" in caplog.text


def test_a_run_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    names = ["x", *(f"x{i}" for i in range(60)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names[:-1])]
    nodes.append(helper.make_node("Mul", [names[-2], names[-2]], ["y"]))
    x, y = io(1024)
    weights: Any = {"w": np.eye(1024, dtype=np.float32) * np.float32(1.2)}
    model = onnx.load(onnx_models.save(tmp_path / "m.onnx", nodes, [x], [y], weights))
    half = to_half(model)
    assert "FP16 ends at 65504" in losses_in_half(model, half, {"x": (1, 1024)})
    assert losses_in_half(model, half, {"x": (1024, 1024)}, timeout_s=0.05) == ""


def test_the_build_its_sidecar_and_the_log_say_what_fp16_loses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rtx = installed_rtx()
    overflowing(tmp_path)
    spec = BuildSpec(precision="fp16", batch_sizes=(1,))
    built = build_plan(tmp_path / "model.onnx", tmp_path / "out", spec, rtx)
    (warning,) = built.warnings
    assert warning.startswith("FP16 loses numbers of this model: on random numbers node square makes ")
    assert sidecar.read(tmp_path / "out" / "model.json").sections["fp16_check"]["lost"] in warning
    with caplog.at_level(logging.WARNING, "pinstream.plans"):
        cached_plan(tmp_path / "model.onnx", spec, rtx, Gpu("NVIDIA RTX 4090", "8.9"), tmp_path / "cache")
    assert warning in caplog.text
    # Whoever compared it in a better way is not asked again.
    again = build_plan(tmp_path / "model.onnx", tmp_path / "out", spec, rtx, sections={"fp16_check": {"mine": 1}})
    assert again.warnings == ()
    fine = build_plan(tmp_path / "model.onnx", tmp_path / "out", BuildSpec(batch_sizes=(1,)), rtx)
    assert (fine.warnings, "fp16_check" in fine.sidecar.sections) == ((), False)
