"""VERIFY=true: what was built is loaded, and nothing else."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from pinstream import sidecar as sidecars
from pinstream.engines import open_engine
from pinstream.errors import ModelFileError
from pinstream.options import Options
from tests import onnx_models

ROOT = Path(__file__).resolve().parents[3]
VERIFY = Options(verify=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its sidecar, as `pinstream build` leaves them."""
    tmp_path.chmod(0o755)
    file = onnx_models.classifier(tmp_path / "model.onnx")
    file.chmod(0o644)
    sidecars.write(tmp_path / "model.json", sidecars.Sidecar("onnx", file.name, sidecars.file_sha256(file), (), ()))
    (tmp_path / "model.json").chmod(0o644)
    return file


def refusal(model: Path) -> str:
    with pytest.raises(ModelFileError, match=r"^VERIFY is set") as caught:
        open_engine(model, VERIFY)
    return str(caught.value)


def test_what_was_built_is_loaded(model: Path) -> None:
    open_engine(model, VERIFY).close()


def test_a_file_that_was_swapped_is_loaded_only_without_verify(model: Path) -> None:
    onnx_models.classifier(model, seed=1)
    assert "SHA-256 differs" in refusal(model)
    open_engine(model, Options()).close()


def test_without_a_sidecar_nothing_vouches_for_the_file(model: Path) -> None:
    (model.parent / "model.json").unlink()
    assert "model.json" in refusal(model)


def test_a_file_that_the_sidecar_does_not_list(model: Path) -> None:
    other = model.rename(model.with_name("other.onnx"))
    assert "does not list other.onnx" in refusal(other)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "."])
def test_what_others_can_write_is_refused(model: Path, name: str) -> None:
    place = model.parent / name
    place.chmod(place.stat().st_mode | 0o022)
    assert "others can write" in refusal(model)


def test_what_belongs_to_another_user_is_refused(model: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(model, 12345, -1)
    assert "belongs to user 12345" in refusal(model)


def test_nothing_here_evaluates_or_unpickles_what_it_reads() -> None:
    """`eval`, `exec`, pickle and what is built on it run code out of data."""
    names = {"eval", "exec", "compile"}
    modules = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
    for top in ("backend", "client", "cli", "model_repository"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in names, f"{path}:{node.lineno}"
                if isinstance(node, ast.Import):
                    assert not {alias.name.partition(".")[0] for alias in node.names} & modules, f"{path}:{node.lineno}"
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").partition(".")[0] not in modules, f"{path}:{node.lineno}"
                if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                    assert not getattr(node.value, "value", True), f"{path}:{node.value.lineno}"
