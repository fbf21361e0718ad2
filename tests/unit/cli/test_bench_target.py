"""What `pinstream bench` is to measure, before there is a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.target import Source, locate
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main


@pytest.mark.parametrize("suite", ["engine", "serve", "compare", "sweep"])
def test_nothing_to_measure_is_told_whoever_else_measures(suite: str, tmp_path: Path) -> None:
    with alone(print, tmp_path / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinstream_cli.benchmark.alone.LOCK", tmp_path / "lock")
        result = CliRunner().invoke(main, ["bench", suite])
    assert result.exit_code == 2
    wanted = "nothing to measure; name a model with --model, or --model-repository with --name"
    assert result.stderr == f"error: {wanted}\n"


def test_another_model_that_is_not_there_is_told_before_the_first_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "sweep", "--model", str(tmp_path), "--also", "none.onnx"])
    assert result.exit_code == 2
    assert "'none.onnx' does not exist" in result.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source(Path("none.onnx")), "--model none.onnx does not exist"),
        (Source(None, None, Path("models")), "--model-repository needs --name"),
        (Source(None, "none", Path("models")), "models/none has no version directory"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, source: Source, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        locate(source, tmp_path)
