"""Models lie in the repositories of the server, where it says which it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream.engines import served_model_file
from pinstream.errors import ModelFileError
from pinstream.options import Options
from tests import onnx_models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.classifier(tmp_path / "repository" / "classifier" / "1" / "model.onnx")


def test_without_a_word_of_the_server_a_model_may_lie_anywhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINSTREAM_REPOSITORIES", raising=False)
    assert served_model_file(model.parent, Options()) == model


def test_a_model_may_lie_in_any_of_the_repositories(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINSTREAM_REPOSITORIES", f"/elsewhere;{tmp_path}/repository/")
    assert served_model_file(model.parent, Options()) == model


def test_a_model_elsewhere_is_refused_with_what_to_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that only begins like the repository's is another directory.
    monkeypatch.setenv("PINSTREAM_REPOSITORIES", f"/models;{tmp_path}/repo")
    with pytest.raises(ModelFileError) as caught:
        served_model_file(model.parent, Options())
    assert str(caught.value) == (
        f"{model.parent} lies in no model repository of this server, as files that are sent with a load do; expected "
        f"it in /models or {tmp_path}/repo: put them into a model repository, and load the model from there"
    )
