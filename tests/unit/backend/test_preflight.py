"""Plans held against machines they do and do not fit. The plans are real, the machines are told."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinstream import sidecar
from pinstream.engines.flavour import Flavour
from pinstream.errors import ModelFileError
from pinstream.plans import BuildSpec, build_plan
from pinstream.preflight import Gpu, check_plan, read_header, this_gpu
from pinstream.sidecar import Sidecar
from tests import onnx_models
from tests.rtx import installed_rtx

H200 = Gpu("NVIDIA H200", "9.0")
ADA = Gpu("NVIDIA RTX 4090", "8.9")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a plan for 8.9, built in batch sizes 1 and 2."""
    base = tmp_path_factory.mktemp("plans")
    model = onnx_models.classifier(base / "class ifier.onnx")
    spec = BuildSpec(batch_sizes=(1, 2), compute_capabilities=("8.9",))
    return build_plan(model, base / "out", spec, installed_rtx()).directory


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


@pytest.fixture
def plan(built: Path, tmp_path: Path) -> Path:
    """A plan of its own for each test to damage."""
    path = tmp_path / "model.b1.plan"
    path.write_bytes((built / path.name).read_bytes())
    return path


@pytest.fixture
def beside(built: Path) -> Sidecar:
    return sidecar.read(built / "model.json")


def refusal(path: Path, flavour: Flavour, gpu: Gpu | None, beside: Sidecar | None) -> str:
    with pytest.raises(ModelFileError) as caught:
        check_plan(path, flavour, gpu, beside)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert "`pinstream build " in text
    assert f"--plan -o {path.parent}" in text
    return text


def told(beside: Sidecar, **tensorrt: Any) -> Sidecar:
    """The sidecar with other words about TensorRT."""
    section = {**beside.sections["tensorrt"], **tensorrt}
    return dataclasses.replace(beside, sections={**beside.sections, "tensorrt": section})


def test_a_plan_that_fits_passes_with_and_without_its_sidecar(rtx: Flavour, plan: Path, beside: Sidecar) -> None:
    for gpu in (ADA, None):
        for given in (beside, None):
            assert check_plan(plan, rtx, gpu, given) == ""


def test_a_plan_for_other_gpus_is_a_warning_on_rtx_which_runs_it_all_the_same(
    rtx: Flavour, plan: Path, beside: Sidecar
) -> None:
    for given in (beside, None):
        note = check_plan(plan, rtx, H200, given)
        assert f"a plan of tensorrt_rtx {rtx.version} for compute capability 8.9" in note
        assert "NVIDIA H200 (compute capability 9.0)" in note


def test_another_version_is_refused_with_both_sides_and_the_command(rtx: Flavour, plan: Path, beside: Sidecar) -> None:
    newer = dataclasses.replace(rtx, version="1.7.1.116")
    for given in (beside, None):
        text = refusal(plan, newer, ADA, given)
        assert f"it is a plan of tensorrt_rtx {rtx.version} for compute capability 8.9" in text
        assert "this machine has tensorrt_rtx 1.7.1.116 and an NVIDIA RTX 4090 (compute capability 8.9)" in text
    # With the sidecar the command is complete, except for the GPU, which is this machine's now.
    command = f"`pinstream build 'class ifier.onnx' --plan -o {plan.parent} --batch-sizes 1,2`"
    assert command in refusal(plan, newer, ADA, beside)
    assert "`pinstream build MODEL.onnx --plan -o" in refusal(plan, newer, ADA, None)


def test_the_other_flavour_is_refused(rtx: Flavour, plan: Path, beside: Sidecar) -> None:
    tensorrt = dataclasses.replace(rtx, name="tensorrt", version="10.16.1.11")
    for given in (beside, None):
        text = refusal(plan, tensorrt, None, given)
        assert f"a plan of tensorrt_rtx {rtx.version}" in text
        assert "this machine has tensorrt 10.16.1.11; set ENGINE to tensorrt_rtx, which is installed too, or " in text


def test_plans_of_tensorrt_belong_to_one_gpu_and_version_unless_built_for_more(
    rtx: Flavour, plan: Path, beside: Sidecar
) -> None:
    here = dataclasses.replace(rtx, name="tensorrt", version="10.16.1.11")
    own = told(beside, flavour="tensorrt", version="10.16.1.11", compute_capability="8.6", compute_capabilities=[])
    check_plan(plan, here, Gpu("NVIDIA A10", "8.6"), own)
    assert "for compute capability 8.6" in refusal(plan, here, ADA, own)
    check_plan(plan, here, ADA, told(own, hardware_compatible=True))
    refusal(plan, here, Gpu("Tesla T4", "7.5"), told(own, hardware_compatible=True))
    older = told(own, version="10.13.0.35")
    refusal(plan, here, Gpu("NVIDIA A10", "8.6"), older)
    check_plan(plan, here, Gpu("NVIDIA A10", "8.6"), told(older, version_compatible=True))
    newer = told(own, version="11.1.0.106", version_compatible=True)
    with pytest.raises(ModelFileError, match=r"11\.1\.0\.106"):
        check_plan(plan, here, Gpu("NVIDIA A10", "8.6"), newer)
    # Some releases report their version without the build number.
    check_plan(plan, dataclasses.replace(here, version="10.16.1"), Gpu("NVIDIA A10", "8.6"), own)
    # And wheels have numbers of their own behind it.
    check_plan(plan, dataclasses.replace(here, version="10.16.1.11.post1"), Gpu("NVIDIA A10", "8.6"), own)
    wheel = told(older, version="10.13.3.9.post1", version_compatible=True)
    check_plan(plan, here, Gpu("NVIDIA A10", "8.6"), wheel)


def test_a_header_alone_does_not_condemn_a_plan_of_tensorrt_for_its_version(rtx: Flavour, tmp_path: Path) -> None:
    """It may be version compatible, which its header does not say as far as we know."""
    path = tmp_path / "model.plan"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([10, 13, 0, 35]) + bytes(100))
    header = read_header(path)
    assert header is not None
    assert (header.flavour, header.version) == ("tensorrt", "10.13.0.35")
    check_plan(path, dataclasses.replace(rtx, name="tensorrt", version="11.1.0.106"), H200)
    assert "a plan of tensorrt 10.13.0.35" in refusal(path, rtx, H200, None)


def test_cut_off_plans_are_told_from_the_sidecar_or_the_header(rtx: Flavour, plan: Path, beside: Sidecar) -> None:
    whole = plan.stat().st_size
    plan.write_bytes(plan.read_bytes()[: whole - 100])
    for given in (beside, None):
        assert f"is cut off: it has {whole - 100:,} bytes of {whole:,}" in refusal(plan, rtx, ADA, given)
    plan.write_bytes(plan.read_bytes()[:40])
    assert "is cut off: it has 40 bytes" in refusal(plan, rtx, ADA, beside)
    assert "is cut off: it has 40 bytes of a plan" in refusal(plan, rtx, ADA, None)
    plan.write_bytes(b"")
    assert "is empty" in refusal(plan, rtx, ADA, beside)
    plan.unlink()
    assert "no such file" in refusal(plan, rtx, ADA, beside)


def test_a_changed_plan_is_not_run(rtx: Flavour, plan: Path, beside: Sidecar) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert "its content differs" in refusal(plan, rtx, ADA, beside)
    plan.write_bytes(bytes(content) + b"more")
    assert "its content differs" in refusal(plan, rtx, ADA, beside)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "onnx": (lambda path: onnx_models.classifier(path), "is an ONNX model"),
    "jpeg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(200))), "is a JPEG image"),
    "checkpoint": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(range(200))), "a PyTorch checkpoint"),
    "text": (lambda path: path.write_text("Not Found: the file has moved. " * 9), "is a text"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n" * 3), "Git LFS pointer"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_another_kind_are_called_by_their_name(
    rtx: Flavour, tmp_path: Path, beside: Sidecar, kind: str
) -> None:
    write, words = FOREIGN[kind]
    path = tmp_path / "model.b1.plan"
    write(path)
    for given in (beside, None):
        text = refusal(path, rtx, ADA, given)
        assert words in text
        assert f"not a plan for tensorrt_rtx {rtx.version}" in text


def test_what_nobody_recognises_is_left_to_tensorrt(rtx: Flavour, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"\x00\xfe\x01\xfd" * 50)
    assert read_header(path) is None
    assert check_plan(path, rtx, ADA) == ""


def test_this_gpu_is_one_that_cuda_can_use() -> None:
    gpu = this_gpu()
    assert this_gpu(999) is None
    if gpu is not None:
        assert float(gpu.compute_capability) >= 5
        assert gpu.name
