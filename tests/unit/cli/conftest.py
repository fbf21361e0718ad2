"""A model for doctor to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import onnx_models
from tests.server.conftest import ONE_LINE


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """The version directory of a model `mine`, with an ONNX file."""
    directory = tmp_path / "repository" / "mine" / "1"
    onnx_models.classifier(directory / "model.onnx")
    (directory.parent / "config.pbtxt").write_text(ONE_LINE)
    return directory
