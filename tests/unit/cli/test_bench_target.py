"""What `pinstream bench` is to measure, before there is a server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.install import Tool
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.suites import engine, serve, sweep
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import Source, locate, target
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main
from tests import onnx_models


@pytest.mark.parametrize("suite", ["engine", "serve", "compare", "sweep"])
def test_nothing_to_measure_is_told_whoever_else_measures(suite: str, tmp_path: Path) -> None:
    with alone(print, tmp_path / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinstream_cli.benchmark.alone.LOCK", tmp_path / "lock")
        result = CliRunner().invoke(main, ["bench", suite])
    assert result.exit_code == 2
    wanted = "nothing to measure; name a model with --model, or --model-repository with --name"
    assert result.stderr == f"error: {wanted}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--limit", "3"], "the start of the server and a window between two of the reference take 13 s"),
        (["serve", "-u", "host:1", "--limit", "3"], "too short: a window between two of the reference take 9 s"),
        (["engine", "--limit", "1", "--window", "0.5", "--reference-window", "0.4"], "take 1.3 s at least"),
    ],
)
def test_a_limit_that_cannot_be_met_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    for suite in (engine, serve):
        monkeypatch.setattr(suite, "run", lambda setup: pytest.fail("it runs"))
    result = CliRunner().invoke(main, ["bench", *arguments, "--model", __file__])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_limit_that_building_has_used_up_is_told_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstream_cli.benchmark.target.serving", pytest.fail)
    source = Source(onnx_models.classifier(tmp_path / "classifier.onnx"))
    with (
        pytest.raises(CommandError, match=r"time was up \(--limit\) before the server was started"),
        target(source, Console(quiet=True), ends=time.monotonic() - 1),
    ):
        pass


def test_a_limit_that_is_over_before_the_first_model_of_a_sweep_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstream_cli.benchmark.target.serving", pytest.fail)
    monkeypatch.setattr(sweep, "find_perf_analyzer", lambda notice: Tool(("false",), "0"))
    source = Source(onnx_models.classifier(tmp_path / "classifier.onnx"))
    plan = Plan(ends=time.monotonic() - 1)
    with pytest.raises(CommandError, match=r"time was up \(--limit\) before the server was started"):
        sweep.run(Setup(source, plan, Console(quiet=True), batches=(1,), also=(tmp_path / "other.onnx",)))


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
