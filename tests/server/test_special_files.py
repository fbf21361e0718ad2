"""A pipe in the place of a file: `pinstream serve` says so, and waits for none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import onnx_models
from tests.server.conftest import add_model
from tests.server.serve_process import Serve
from tests.server.test_serve import failing
from tests.yolox_exports import Export


@pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
def test_as_the_model(start: Callable[..., Serve], tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert f"--model {tmp_path / name} is no regular file; name an .onnx file" in failing(
        start, "--model", tmp_path / name
    )


def test_as_the_labels(start: Callable[..., Serve], tmp_path: Path) -> None:
    export, labels = Export().save(tmp_path / "small.onnx"), tmp_path / "names.txt"
    os.mkfifo(labels)
    said = failing(start, "--model", export, "--labels", labels)
    assert f"{labels}: the labels cannot be read (is no regular file)" in said


def test_as_the_configuration(start: Callable[..., Serve], tmp_path: Path) -> None:
    onnx_models.classifier(add_model(tmp_path, "classifier"))
    (tmp_path / "classifier" / "config.pbtxt").unlink()
    os.mkfifo(tmp_path / "classifier" / "config.pbtxt")
    said = failing(start, "--model-repository", tmp_path)
    assert f"VERIFY may be set, and of {tmp_path / 'classifier'} config.pbtxt is no regular file" in said
