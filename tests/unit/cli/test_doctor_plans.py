"""`pinstream doctor` on plans, and on models whose options or tensors the backend refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pinstream.engines.flavour import Flavour
from pinstream.options import Options
from pinstream.plans import BuildSpec, build_plan
from pinstream.preflight import Gpu
from pinstream_cli.doctor.model_files import plan_check
from tests import onnx_models
from tests.rtx import installed_rtx
from tests.unit.cli.test_doctor import ONE_LINE, report

H200 = Gpu("NVIDIA H200", "9.0", "13.0")
BUILDS = Options(auto_build=True)
VERIFY_AND_BUILD = Options(auto_build=True, verify=True)


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )


@pytest.fixture
def flavour() -> Flavour:
    return installed_rtx()


@pytest.fixture
def plans(flavour: Flavour, tmp_path: Path) -> Path:
    """A directory with plans of TensorRT for RTX, their sidecar and their ONNX file."""
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    build_plan(onnx, tmp_path / "repository" / "mine" / "1", BuildSpec(batch_sizes=(1, 4)), flavour)
    (tmp_path / "repository" / "mine" / "config.pbtxt").write_text(ONE_LINE)
    return tmp_path / "repository" / "mine" / "1"


def checks_of(version: Path, config: str) -> tuple[int, dict[str, dict[str, str]]]:
    (version.parent / "config.pbtxt").write_text(config)
    code, checks = report("--model-repository", version.parents[1])
    return code, {name: check for (area, name), check in checks.items() if area == "model mine"}


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        (parameters(BUCKETS="four"), "1/", "BUCKETS"),
        (parameters(SHARE_ENGINE="on", OUTPUT_MEMORY="gpu"), "1/", "a shared engine takes and gives host memory only"),
        (parameters(EXECUTIONS="4"), "1/", "each has its part in a shared engine"),
        (parameters(VERIFY="true"), "1/ VERIFY", "VERIFY is set"),
        (parameters(ENGINE="tensorrt_rtx"), "1/model.onnx here", ""),
        ('input { name: "picture" data_type: TYPE_FP32 dims: [ 3 ] }', "1/model.onnx here", "has input 'picture'"),
        ('input { name: "pixels" data_type: TYPE_FP16 dims: [ 3, 8, 8 ] }', "1/model.onnx here", "TYPE_FP16"),
    ],
)
def test_what_the_backend_refuses_is_refused(version: Path, config: str, name: str, words: str) -> None:
    code, checks = checks_of(version, ONE_LINE + config)
    assert code == 1
    assert checks[name]["status"] == "FIX"
    assert words in checks[name]["found"]
    assert checks[name]["remedy"]


@pytest.mark.parametrize("field", ['input { name: "pixels" }', 'output { name: "probabilities" dims: [ 10 ] }'])
def test_a_tensor_that_lacks_its_fields_is_told_and_not_raised(version: Path, field: str) -> None:
    code, checks = checks_of(version, ONE_LINE + field)
    assert code == 1
    assert any(check["status"] == "FIX" for check in checks.values())


def test_a_plan_under_any_name_is_looked_at(version: Path) -> None:
    (version / "network.engine").write_bytes(b"\xff\xd8\xff a picture")
    code, checks = checks_of(version, ONE_LINE + 'default_model_filename: "network.engine"')
    assert code == 1
    assert checks["1/network.engine here"]["status"] == "FIX"


def test_an_empty_plan_is_empty_from_the_first_line_on(version: Path) -> None:
    (version / "model.plan").touch()
    code, checks = checks_of(version, ONE_LINE)
    assert code == 1
    assert checks["1/model.plan"]["found"] == "is empty"
    assert {check["status"] for name, check in checks.items() if name.startswith("1/model.plan")} == {"FIX"}


def test_with_auto_build_a_plan_need_not_be_there(version: Path) -> None:
    (version / "model.plan").touch()
    _, checks = checks_of(version, ONE_LINE + parameters(AUTO_BUILD="true"))
    assert checks["1/model.onnx"]["status"] == "OK"
    here = checks["1/model.plan here"]
    # What is wrong where there is no GPU or no TensorRT is that, and not the empty plan.
    assert here["status"] == ("OK" if "when the model is loaded" in here["found"] else "FIX")
    assert here["status"] == "OK" or "a GPU" in here["found"] or "TensorRT" in here["found"]


def test_plans_that_fit_are_fit(plans: Path, flavour: Flavour) -> None:
    check = plan_check("mine", plans / "model.b1.plan", Options(), flavour, H200)
    assert (check.status, check.found) == ("OK", f"fits NVIDIA H200 (9.0), {flavour}")
    on_cpu = plan_check("mine", plans / "model.b1.plan", Options(kind="CPU"), flavour, H200)
    assert (on_cpu.status, "KIND_CPU" in on_cpu.found) == ("FIX", True)


def test_plans_for_other_gpus_are_told(plans: Path, flavour: Flavour) -> None:
    sidecar = plans / "model.json"
    content = json.loads(sidecar.read_text())
    content["tensorrt"]["compute_capabilities"] = ["8.6", "12.0"]
    sidecar.write_text(json.dumps(content))
    check = plan_check("mine", plans / "model.b1.plan", Options(), flavour, H200)
    assert (check.status, "for compute capability 8.6, 12.0, and this machine has" in check.found) == ("WARN", True)
    assert check.remedy.startswith("build it here: `pinstream build")
    # Of TensorRT itself a plan runs where it was built, and nowhere else.
    content["tensorrt"].update(flavour="tensorrt", version="10.9.0", compute_capability="8.9", compute_capabilities=[])
    sidecar.write_text(json.dumps(content))
    check = plan_check("mine", plans / "model.b1.plan", Options(), Flavour("tensorrt", None, "10.9.0"), H200)
    assert (check.status, "cannot run here: it is a plan of tensorrt 10.9.0 for compute" in check.found) == (
        "FIX",
        True,
    )


@pytest.mark.parametrize("damage", ["empty", "missing", "foreign"])
def test_what_auto_build_builds_is_no_fault(plans: Path, flavour: Flavour, damage: str) -> None:
    plan = plans / "model.b1.plan"
    plan.write_bytes(b"" if damage == "empty" else b"\xff\xd8\xff a picture")
    if damage == "missing":
        plan.unlink()
    without = plan_check("mine", plan, Options(), flavour, H200)
    assert without.status == "FIX"
    assert without.remedy.startswith(("build", "copy"))
    check = plan_check("mine", plan, BUILDS, flavour, H200)
    assert check.status == "OK"
    assert check.found.startswith("AUTO_BUILD builds it from model.onnx when the model is loaded")


def test_auto_build_says_what_it_lacks(plans: Path, flavour: Flavour) -> None:
    plan = plans / "model.b1.plan"
    plan.write_bytes(b"")
    no_gpu = plan_check("mine", plan, BUILDS, flavour, None)
    assert (no_gpu.status, "needs a GPU" in no_gpu.found) == ("FIX", True)
    plan.write_bytes(b"\xff\xd8\xff a picture")
    onnx_models.classifier(plans / "model.onnx", seed=1)
    unvouched = plan_check("mine", plan, VERIFY_AND_BUILD, flavour, H200)
    assert unvouched.status == "FIX"
    assert "VERIFY is set" in unvouched.found
    (plans / "model.onnx").unlink()
    no_source = plan_check("mine", plan, BUILDS, flavour, H200)
    assert (no_source.status, no_source.remedy) == ("FIX", "put it there")


def test_every_plan_of_a_model_is_code_that_nobody_else_may_write(plans: Path) -> None:
    (plans / "model.b4.plan").chmod(0o666)
    _, checks = checks_of(plans, ONE_LINE)
    assert checks["1/ permissions"]["status"] == "WARN"
    assert "model.b4.plan (mode 666)" in checks["1/ permissions"]["found"]
    _, checks = checks_of(plans, ONE_LINE + parameters(VERIFY="true"))
    assert checks["1/ VERIFY"]["status"] == "FIX"
    assert checks["1/ VERIFY"]["remedy"] == f"chmod go-w {plans / 'model.b4.plan'}"
