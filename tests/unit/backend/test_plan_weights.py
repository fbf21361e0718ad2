"""Models that keep weights in other files: what is put beside their plans, and what VERIFY says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from pinstream import sidecar as sidecars
from pinstream.engines import open_engine
from pinstream.engines.flavour import Flavour
from pinstream.errors import ModelFileError
from pinstream.options import Options
from pinstream.plans import BuildSpec, build_plan, cached_plan
from pinstream.preflight import Gpu
from pinstream.verify import verify_model
from pinstream_cli.main import main
from tests import onnx_models
from tests.rtx import installed_rtx

ONE = BuildSpec(batch_sizes=(1,))
PLAN_FILES = ["model.json", "model.plan"]
WHOLE = ["model.json", "model.onnx", "model.plan", "w.data"]


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_weights(tmp_path / "export" / "large.onnx", "w.data")


def with_weights(path: Path, location: str) -> Path:
    """A classifier whose weights lie in a file of their own."""
    path.parent.mkdir(exist_ok=True)
    (path.parent / location).parent.mkdir(exist_ok=True)
    graph = onnx.load(onnx_models.classifier(path))
    onnx.save(graph, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def section(directory: Path, name: str) -> Any:
    return sidecars.read(directory / "model.json").sections.get(name)


def test_the_command_copies_weights_and_lists_what_verify_asks_for(rtx: Flavour, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["build", str(model), "-o", str(out), "--plan", "--batch-sizes", "1"])
    assert done.exit_code == 0, done.output
    assert names(out) == WHOLE
    assert section(out, "onnx") == {"file": "model.onnx", "sha256": sidecars.file_sha256(model)}
    assert section(out, "external_data") == [
        {"file": "w.data", "sha256": sidecars.file_sha256(model.with_name("w.data"))}
    ]
    for path in (out, *out.iterdir()):
        path.chmod(0o755)
    verified = Options(verify=True)
    open_engine(out / "model.onnx", verified).close()
    weights = (out / "w.data").read_bytes()
    (out / "w.data").write_bytes(weights[::-1])
    with pytest.raises(ModelFileError, match=r"w\.data is not the file that model\.json lists"):
        open_engine(out / "model.onnx", verified)


def test_plans_are_verified_without_the_weights_that_they_were_built_from(
    rtx: Flavour, model: Path, tmp_path: Path
) -> None:
    out = build_plan(model, tmp_path / "out", ONE, rtx).directory
    for name in ("model.onnx", "w.data"):
        (out / name).unlink()
    for path in (out, *out.iterdir()):
        path.chmod(0o755)
    verify_model(out / "model.plan", is_onnx=False)


def test_what_was_kept_is_built_again_where_it_lies_and_elsewhere(rtx: Flavour, model: Path, tmp_path: Path) -> None:
    first = build_plan(model, tmp_path / "out", ONE, rtx)
    again = build_plan(first.directory / "model.onnx", first.directory, ONE, rtx)
    moved = build_plan(first.directory / "model.onnx", tmp_path / "moved", ONE, rtx)
    for built in (again, moved):
        assert names(built.directory) == WHOLE
        for name in ("onnx", "external_data", "source"):
            assert section(built.directory, name) == first.sidecar.sections[name]
    # A model with its weights inside takes the list with it.
    whole = onnx_models.classifier(tmp_path / "whole.onnx")
    build_plan(whole, moved.directory, ONE, rtx)
    assert section(moved.directory, "external_data") is None


@pytest.mark.parametrize("location", ["sub/w.data", "model.json", "model.onnx", "w.plan"])
def test_a_model_whose_weights_cannot_lie_beside_the_plans_is_not_copied(
    rtx: Flavour, tmp_path: Path, location: str
) -> None:
    model = with_weights(tmp_path / "export" / "large.onnx", location)
    out = build_plan(model, tmp_path / "out", ONE, rtx).directory
    assert names(out) == PLAN_FILES
    assert section(out, "onnx") == {"file": "large.onnx", "sha256": sidecars.file_sha256(model)}
    assert section(out, "external_data") is None


def test_the_cache_of_plans_holds_no_weights_twice(rtx: Flavour, model: Path, tmp_path: Path) -> None:
    entry = cached_plan(model, ONE, rtx, Gpu("NVIDIA H200", "9.0", "13.0"), tmp_path / "cache")
    assert names(entry) == PLAN_FILES


def test_labels_come_over_and_the_list_of_weights_only_with_the_weights(
    rtx: Flavour, model: Path, tmp_path: Path
) -> None:
    listed = {"external_data": [{"file": "w.data", "sha256": sidecars.file_sha256(model.with_name("w.data"))}]}
    beside = sidecars.Sidecar("onnx", model.name, sidecars.file_sha256(model), (), (), ("cat", "dog"), listed)
    sidecars.write(model.with_name("model.json"), beside)
    for keep in (True, False):
        built = build_plan(model, tmp_path / str(keep), ONE, rtx, keep_weights=keep)
        assert built.sidecar.labels == ("cat", "dog")
        assert ("external_data" in built.sidecar.sections) == keep
