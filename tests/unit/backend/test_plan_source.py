"""Plans are held against the machine before they are loaded, and AUTO_BUILD says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream.engines import find_model_file, inspect
from pinstream.engines.flavour import Flavour
from pinstream.engines.plan_source import usable_plans
from pinstream.errors import ModelFileError
from pinstream.options import Options
from pinstream.plans import BuildSpec, build_plan
from pinstream.preflight import Gpu
from tests import onnx_models
from tests.rtx import installed_rtx

H200 = Gpu("NVIDIA H200", "9.0", "13.0")


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return installed_rtx()


@pytest.fixture
def plans(flavour: Flavour, tmp_path: Path) -> Path:
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    build_plan(onnx, tmp_path / "plans", BuildSpec(batch_sizes=(1, 4)), flavour)
    return tmp_path / "plans"


def test_all_plans_of_the_sidecar_are_the_model(flavour: Flavour, plans: Path) -> None:
    model_file = find_model_file(plans, Options())
    files = usable_plans(model_file, Options(), flavour, H200)
    assert [file.name for file in files] == ["model.b1.plan", "model.b4.plan"]


def test_the_model_is_described_without_loading_it(plans: Path) -> None:
    spec = inspect(find_model_file(plans, Options()), Options())
    assert spec.batch is not None
    assert spec.batch.buckets == (1, 4)
    assert str(spec.inputs[0]) == "pixels FP32[3, 8, 8]"


def test_a_damaged_part_is_named_with_the_command_that_builds_it(flavour: Flavour, plans: Path) -> None:
    part = plans / "model.b4.plan"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"model\.b4\.plan is cut off.*pinstream build"):
        usable_plans(plans / "model.b1.plan", Options(), flavour, H200)


def test_auto_build_without_the_onnx_says_so(flavour: Flavour, plans: Path) -> None:
    (plans / "model.b4.plan").unlink()
    (plans / "model.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"no model\.onnx beside it"):
        usable_plans(plans / "model.b1.plan", Options(auto_build=True), flavour, H200)


def test_auto_build_without_a_gpu_says_so(flavour: Flavour, plans: Path) -> None:
    (plans / "model.b4.plan").unlink()
    with pytest.raises(ModelFileError, match="AUTO_BUILD needs a GPU"):
        usable_plans(plans / "model.b1.plan", Options(auto_build=True), flavour, None)


def test_auto_build_builds_what_the_sidecar_wished_for_into_the_cache(
    flavour: Flavour, plans: Path, tmp_path: Path
) -> None:
    (plans / "model.b4.plan").write_bytes(b"\xff\xd8\xff a picture")
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    files = usable_plans(plans / "model.b1.plan", options, flavour, H200)
    assert [file.name for file in files] == ["model.b1.plan", "model.b4.plan"]
    assert all(file.is_relative_to(tmp_path / "cache") for file in files)
    again = usable_plans(plans / "model.b1.plan", options, flavour, H200)
    assert [f.stat().st_mtime_ns for f in again] == [f.stat().st_mtime_ns for f in files], "built once"


def test_an_onnx_file_is_no_plan_unless_it_may_be_built(flavour: Flavour, plans: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is no plan"):
        usable_plans(plans / "model.onnx", Options(), flavour, H200)
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    assert len(usable_plans(plans / "model.onnx", options, flavour, H200)) == 2
