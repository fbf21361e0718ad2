"""Plans are held against the machine before they are loaded, and AUTO_BUILD says what it lacks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from pinstream import sidecar
from pinstream.engines import find_model_file, inspect, open_for_instance
from pinstream.engines.flavour import Flavour
from pinstream.engines.plan_source import described_plans, replaced_source, usable_plans
from pinstream.engines.profiles import Range
from pinstream.errors import ConfigError, EngineError, ModelFileError, PinstreamError
from pinstream.options import Options
from pinstream.plans import BuildSpec, build_plan
from pinstream.plans.jobs import DEFAULT_BATCH_SIZES
from pinstream.preflight import Gpu, check_plan, read_header
from tests import onnx_models
from tests.rtx import installed_rtx

ROOT = Path(__file__).resolve().parents[3]
H200 = Gpu("NVIDIA H200", "9.0", "13.0")
BLACKWELL = Gpu("NVIDIA GeForce RTX 5090", "12.0", "13.0")


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return installed_rtx()


@pytest.fixture
def plans(flavour: Flavour, tmp_path: Path) -> Path:
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    build_plan(onnx, tmp_path / "plans", BuildSpec(batch_sizes=(1, 4)), flavour)
    return tmp_path / "plans"


def say_of_tensorrt(directory: Path, **words: Any) -> None:
    """Lets the sidecar tell of another build, as on another machine or with another TensorRT."""
    path = directory / "model.json"
    content = json.loads(path.read_text())
    content["tensorrt"].update(words)
    path.write_text(json.dumps(content))


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


def test_auto_build_builds_from_nothing_that_verify_does_not_vouch_for(
    flavour: Flavour, plans: Path, tmp_path: Path
) -> None:
    say_of_tensorrt(plans, version="1.3.0.1")
    options = Options(auto_build=True, verify=True, cache_dir=str(tmp_path / "cache"))
    built_from = (plans / "model.onnx").read_bytes()
    onnx_models.classifier(plans / "model.onnx", seed=1)
    with pytest.raises(ModelFileError, match=r"VERIFY is set, and .*model\.onnx is not the file"):
        usable_plans(plans / "model.b1.plan", options, flavour, BLACKWELL)
    (plans / "model.onnx").write_bytes(built_from)
    assert usable_plans(plans / "model.b1.plan", options, flavour, BLACKWELL)


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


def test_auto_build_builds_again_where_the_onnx_file_was_replaced(
    flavour: Flavour, plans: Path, tmp_path: Path
) -> None:
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    model_file = find_model_file(plans, options)
    assert usable_plans(model_file, options, flavour, H200)[0].parent == plans
    onnx_models.classifier(plans / "model.onnx", seed=7)
    assert usable_plans(model_file, Options(), flavour, H200)[0].parent == plans, "nobody asked for a build"
    files = usable_plans(model_file, options, flavour, H200)
    assert all(file.is_relative_to(tmp_path / "cache") for file in files)
    built_from = sidecar.read(files[0].parent / "model.json").sections["source"]["sha256"]
    assert built_from == sidecar.file_sha256(plans / "model.onnx")


def test_auto_build_builds_again_where_weights_beside_the_onnx_file_were_replaced(
    flavour: Flavour, tmp_path: Path
) -> None:
    path = onnx_models.classifier(tmp_path / "classifier.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    build_plan(path, tmp_path / "plans", BuildSpec(batch_sizes=(1,)), flavour)
    assert replaced_source(tmp_path / "plans") == ""
    weights = tmp_path / "plans" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert replaced_source(tmp_path / "plans") == "weights.bin"


def test_a_model_whose_onnx_file_was_replaced_is_not_described_by_its_old_plans(flavour: Flavour, plans: Path) -> None:
    options = Options(auto_build=True)
    assert inspect(find_model_file(plans, options), options).outputs[0].shape == (10,)
    onnx_models.classifier(plans / "model.onnx", seed=7)
    with pytest.raises(PinstreamError):  # it takes a GPU to build, and to say what there is then
        inspect(find_model_file(plans, options), options)


@pytest.mark.parametrize(
    ("section", "content"),
    [("onnx", "a text"), ("external_data", [3]), ("external_data", {"file": "x"})],
)
def test_malformed_sections_about_the_source_are_named(plans: Path, section: str, content: Any) -> None:
    path = plans / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), section: content}))
    with pytest.raises(ModelFileError, match="malformed section 'onnx' or 'external_data'"):
        replaced_source(plans)


def test_profiles_that_cannot_be_are_malformed_and_huge_ones_cost_nothing(plans: Path) -> None:
    path = plans / "model.json"
    content = json.loads(path.read_text())
    (profile,) = content["plans"][0]["inputs"][0]["ranges"]
    for wrong in ([], [1, 3, 8], [0, 3, 8, 8]):
        profile["max"] = wrong
        path.write_text(json.dumps(content))
        with pytest.raises(ModelFileError, match="malformed section 'plans'"):
            described_plans(plans / "model.b1.plan")
    profile["max"] = [10**30, 3, 8, 8]
    path.write_text(json.dumps(content))
    assert inspect(plans / "model.b1.plan", Options()).batch is not None


def test_a_plan_without_cuda_s_bindings_says_what_to_install(plans: Path) -> None:
    script = (
        "import sys; sys.modules['cuda.bindings'] = None\n"
        "from pathlib import Path; from pinstream.engines import open_engine; from pinstream.options import Options\n"
        "from pinstream.errors import ModelFileError\n"
        "try: open_engine(Path(sys.argv[1]), Options())\n"
        "except ModelFileError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(plans / "model.b1.plan")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT / "backend")
    assert "needs packages that are not installed here" in done.stdout
    assert "pip install 'pinstream[gpu]'" in done.stdout


def test_a_plan_that_brings_code_along_needs_to_be_allowed(flavour: Flavour, plans: Path, tmp_path: Path) -> None:
    say_of_tensorrt(plans, version_compatible=True)
    model_file = find_model_file(plans, Options())
    with pytest.raises(ConfigError, match='set the parameter VERSION_COMPATIBLE to "true"'):
        usable_plans(model_file, Options(auto_build=True, cache_dir=str(tmp_path / "cache")), flavour, H200)
    assert usable_plans(model_file, Options(version_compatible=True), flavour, H200)


def test_file_names_by_compute_capability_need_no_gpu_to_be_passed_over(plans: Path) -> None:
    options = Options(cc_model_filenames=(("0.1", "other.plan"),))
    assert find_model_file(plans, options).name == "model.b1.plan"


def test_auto_build_builds_for_the_gpu_at_hand_and_not_for_those_there_were(flavour: Flavour, tmp_path: Path) -> None:
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    build_plan(onnx, tmp_path / "plans", BuildSpec(batch_sizes=(1,), compute_capabilities=("8.9",)), flavour)
    say_of_tensorrt(tmp_path / "plans", version="1.3.0.1")
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    (plan,) = usable_plans(find_model_file(tmp_path / "plans", options), options, flavour, BLACKWELL)
    beside = sidecar.read(plan.parent / "model.json")
    assert check_plan(plan, flavour, BLACKWELL, beside) == ""
    header = read_header(plan)
    assert header is not None
    assert header.capabilities == (), "for every GPU"
    section = beside.sections["tensorrt"]
    assert (section["gpu"], section["compute_capability"]) == (BLACKWELL.name, "12.0")


@pytest.mark.parametrize("wish", ["version_compatible", "hardware_compatible"])
def test_what_only_tensorrt_can_build_is_asked_of_rtx_neither_by_auto_build_nor_by_the_command(
    flavour: Flavour, plans: Path, tmp_path: Path, wish: str
) -> None:
    wished = {"batch_sizes": [4], "precision": "fp16", wish: True}
    say_of_tensorrt(plans, flavour="tensorrt", version="10.13.0.35", options=wished, arguments=["--of-no-interest"])
    model_file = find_model_file(plans, Options())
    with pytest.raises(ModelFileError) as caught:
        usable_plans(model_file, Options(), flavour, H200)
    command = f"`pinstream build {plans}/model.onnx --plan -o {plans} --precision fp16 --batch-sizes 4`"
    assert str(caught.value).endswith(f"build it here: {command}")
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    (plan,) = usable_plans(model_file, options, flavour, H200)
    assert sidecar.read(plan.parent / "model.json").sections["tensorrt"]["options"]["precision"] == "fp16"


def test_malformed_build_options_are_named(flavour: Flavour, plans: Path) -> None:
    say_of_tensorrt(plans, options={"precision": "fp3"})
    for options, text in (
        (Options(), r"model\.json is malformed .*fp3.*`pinstream build MODEL\.onnx --plan -o"),
        (Options(auto_build=True), r"model\.json has malformed build options .*fp3"),
    ):
        with pytest.raises(ModelFileError, match=text):
            usable_plans(find_model_file(plans, options), options, flavour, H200)


def test_an_empty_plan_is_refused_with_what_it_should_be_and_the_command(flavour: Flavour, plans: Path) -> None:
    first = plans / "model.b1.plan"
    nbytes = first.stat().st_size
    first.write_bytes(b"")
    with pytest.raises(ModelFileError) as caught:
        usable_plans(find_model_file(plans, Options()), Options(), flavour, H200)
    command = f"`pinstream build {plans}/model.onnx --plan -o {plans} --batch-sizes 1,4`"
    assert str(caught.value) == f"{first} is empty, not {nbytes:,} bytes; copy it again, or build it: {command}"
    (plans / "model.json").unlink()
    first.rename(plans / "model.plan")
    with pytest.raises(
        ModelFileError, match=r"model\.plan is empty, not a plan; .*`pinstream build MODEL\.onnx --plan"
    ):
        usable_plans(find_model_file(plans, Options()), Options(), flavour, H200)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_auto_build_builds_a_first_plan_that_is_empty_or_missing(
    flavour: Flavour, plans: Path, tmp_path: Path, missing: bool, beside: bool
) -> None:
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    first = plans / "model.b1.plan"
    if not beside:
        (plans / "model.json").unlink()
        options = dataclasses.replace(options, model_filename=first.name)
    first.write_bytes(b"")
    if missing:
        first.unlink()
    model_file = find_model_file(plans, options)
    assert model_file == first
    files = usable_plans(model_file, options, flavour, H200)
    assert [f.name for f in files] == [f"model.b{n}.plan" for n in ((1, 4) if beside else DEFAULT_BATCH_SIZES)]
    assert all(f.is_relative_to(tmp_path / "cache") for f in files)


def test_a_shared_engine_is_asked_for_a_plan_that_is_yet_to_be_built(flavour: Flavour, plans: Path) -> None:
    (plans / "model.b1.plan").unlink()
    (plans / "model.onnx").write_bytes(b"no model")
    options = Options(auto_build=True, share_engine="on")
    # The engine's process says so: no GPU to build for, or no model to build from.
    with pytest.raises((EngineError, ModelFileError), match=r"GPU|is not an ONNX model"):
        open_for_instance(find_model_file(plans, options), options)


def test_a_missing_plan_that_nothing_can_be_built_from_is_missing(flavour: Flavour, plans: Path) -> None:
    (plans / "model.b1.plan").unlink()
    with pytest.raises(
        ModelFileError, match=r"no model\.b1\.plan in .*there is: model\.b4\.plan, model\.json, model\.onnx"
    ):
        find_model_file(plans, Options())
    (plans / "model.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"no model\.b1\.plan in"):
        find_model_file(plans, Options(auto_build=True))


def test_an_empty_onnx_file_is_no_plan_to_build(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelFileError, match=r"model\.onnx is empty"):
        find_model_file(tmp_path, Options(auto_build=True))
    (tmp_path / "model.plan").touch()
    with pytest.raises(ModelFileError, match=r"model\.plan is empty; copy the model"):
        find_model_file(tmp_path, Options(engine="onnxruntime"))


def test_an_onnx_file_is_no_plan_unless_it_may_be_built(flavour: Flavour, plans: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is no plan"):
        usable_plans(plans / "model.onnx", Options(), flavour, H200)
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    assert len(usable_plans(plans / "model.onnx", options, flavour, H200)) == 2


def test_auto_build_of_open_dimensions_names_the_build_that_gives_their_sizes_and_heeds_it(
    flavour: Flavour, tmp_path: Path
) -> None:
    wide = onnx_models.dynamic_width(tmp_path / "model.onnx")
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError) as caught:
        usable_plans(find_model_file(tmp_path, options), options, flavour, H200)
    assert "give the smallest, usual and largest: --shape row:N:N:N; AUTO_BUILD has only" in str(caught.value)
    assert f"build once with `pinstream build {wide} --plan -o {tmp_path}` and what is asked for" in str(caught.value)
    sizes = (("row", Range((1,), (8,), (16,))),)
    build_plan(wide, tmp_path, BuildSpec(max_batch=2, shapes=sizes), flavour)
    model_file = find_model_file(tmp_path, options)
    assert usable_plans(model_file, options, flavour, H200) == [tmp_path / "model.plan"]
    # The options stay, for a build that another TensorRT needs.
    say_of_tensorrt(tmp_path, version="1.3.0.1")
    (again,) = usable_plans(model_file, options, flavour, H200)
    assert again.is_relative_to(tmp_path / "cache")
