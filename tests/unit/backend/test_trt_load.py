"""What of loading a plan needs no GPU: what TensorRT's runtime is told, and which tensors are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pinstream.engines.flavour import Flavour
from pinstream.engines.plan_info import describe_engine
from pinstream.engines.profiles import PlanTensor, Range
from pinstream.errors import ModelFileError
from pinstream.options import Options
from tests.rtx import installed_rtx

trt_load = pytest.importorskip("pinstream.engines.trt_load", reason="needs the cuda-python package")


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


@pytest.mark.parametrize("allowed", [False, True])
def test_code_in_a_plan_runs_only_where_it_is_allowed_to(
    rtx: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    told: list[bool] = []

    def refuse(flavour: Flavour, runtime: Any, path: Path) -> None:
        told.append(runtime.engine_host_code_allowed)

    monkeypatch.setattr(trt_load, "_deserialize", refuse)
    plan = tmp_path / "model.plan"
    plan.touch()
    with pytest.raises(ModelFileError, match="cannot be loaded by tensorrt_rtx"):
        trt_load.load_plans([plan], plan, Options(version_compatible=allowed), rtx, None)
    assert told == [allowed]


class EngineOf:
    """An engine with one input `x` FP32 [1,32], laid out in memory as it is told."""

    num_io_tensors = num_optimization_profiles = 1

    def __init__(self, trt: Any, layout: str) -> None:
        self._trt, self._layout = trt, layout

    def get_tensor_name(self, index: int) -> str:
        return "x"

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.FLOAT

    def get_tensor_format(self, name: str) -> Any:
        return getattr(self._trt.TensorFormat, self._layout)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return 1, 32

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return []


@pytest.mark.parametrize("layout", ["CHW2", "CHW32", "HWC", "HWC8", "CDHW32", "DHWC8", "DLA_HWC4"])
def test_tensors_that_are_not_linear_are_refused(rtx: Flavour, layout: str) -> None:
    with pytest.raises(
        ModelFileError, match=f"tensor x has TensorRT's format {layout}, and Triton's tensors are linear"
    ):
        describe_engine(rtx, EngineOf(rtx.module, layout), "model.plan")


def test_a_linear_tensor_is_described(rtx: Flavour) -> None:
    (described,) = describe_engine(rtx, EngineOf(rtx.module, "LINEAR"), "model.plan").inputs
    assert described == PlanTensor("x", "FP32", (1, 32), (Range((1, 32), (1, 32), (1, 32)),))
