"""Where results of `pinstream bench` go: checked before anything is measured, shown before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark import alone
from pinstream_cli.benchmark.report import Result, row
from pinstream_cli.benchmark.sample import Measured, Sample
from pinstream_cli.benchmark.suites import engine, serve
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.main import main
from tests import onnx_models

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


class Bare:
    """A subject that is only looked at."""

    name, batch, concurrency = "bare loop", 1, 1

    def measure(self, seconds: float) -> Sample:
        raise AssertionError(seconds)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures do not matter here: nobody has to wait for others."""
    monkeypatch.setattr(alone, "LOCK", tmp_path / "lock")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["engine", "--json", "{}/file/x.json"], "--json {0}/file/x.json cannot be written: {0}/file is no directory"),
        (["engine", "--json", "{}"], "--json {} is a directory; name a file"),
        (["engine", "--plot", "{}/file"], "--plot {0}/file cannot be written: {0}/file is no directory"),
        (["serve", "--keep-raw", "{}/file/raw"], "{}/file is no directory"),
        (["timeline", "--model", "x.onnx", "--out", "{}/file/new/plots"], "{}/file is no directory"),
        (["plot", "{}/file", "--out", "{}/file"], "{}/file is no directory"),
        # Whoever is root has the permissions, and still nothing can be made there.
        (["engine", "--plot", "/proc/plots"], "--plot /proc/plots cannot be written: /proc: No such file or directory"),
        (["engine", "--json", "/proc/sys/x.json"], "--json /proc/sys/x.json cannot be written: /proc/sys"),
        (["serve", "--keep-raw", "/proc/1/a/b"], "--keep-raw /proc/1/a/b cannot be written: /proc/1: No such file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    for suite in (engine, serve):
        monkeypatch.setattr(suite, "run", pytest.fail)
    monkeypatch.setattr("pinstream_cli.bench.record", pytest.fail)
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["bench", *(text.format(tmp_path) for text in arguments)])
    assert done.exit_code == 2, done.output
    assert error.format(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_is_shown_whatever_becomes_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "there"
    directory.mkdir()

    def run(setup: Setup) -> Result:
        shutil.rmtree(directory)
        directory.touch()
        measured = Measured(Bare(), [Sample(100.0, 1.0, 2.0)], [1.0])
        return Result("engine", "the bare loop", [row(measured)], [measured], {})

    monkeypatch.setattr(engine, "run", run)
    done = CliRunner().invoke(main, ["bench", "engine", "--model", __file__, "--json", str(directory / "x.json")])
    assert done.exit_code == 2
    assert "bare loop" in done.stdout
    assert f"error: {directory} cannot be written" in done.stderr


def test_bare_loops_are_drawn_by_batch_size(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    quick = ["--batch", "1,8", "--repetitions", "1", "--window", "0.3", "--foreign", "1"]
    done = CliRunner().invoke(main, ["bench", "engine", "--model", str(model), *quick, "--plot", str(tmp_path / "p")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "p" / "engine-batch-sizes-light.svg").read_text()
    for words in ("bare ONNX Runtime loop", "engine loop", "items of a run", ">8<"):
        assert words in text


def test_the_result_is_kept_before_what_runs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = tmp_path / "x.json", []

    def run(setup: Setup) -> Result:
        setup.closing.callback(lambda: seen.append(file.is_file()))
        measured = Measured(Bare(), [Sample(100.0, 1.0, 2.0)], [1.0])
        return Result("engine", "the bare loop", [row(measured)], [measured], {})

    monkeypatch.setattr(engine, "run", run)
    done = CliRunner().invoke(main, ["bench", "engine", "--model", __file__, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert seen == [True]


def test_whoever_interrupts_gets_what_there_is_and_an_exit_code_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.json"

    def run(setup: Setup) -> Result:
        measured = Measured(Bare(), [Sample(100.0, 1.0, 2.0)], [1.0])
        return Result("engine", "the bare loop", [row(measured)], [measured], {}, interrupted=True)

    monkeypatch.setattr(engine, "run", run)
    done = CliRunner().invoke(main, ["bench", "engine", "--model", __file__, "--json", str(file)])
    assert (done.exit_code, done.stderr) == (130, "Stopped.\n")
    assert json.loads(file.read_text())["rows"]


def test_where_nothing_can_be_drawn_that_is_said(tmp_path: Path) -> None:
    limits = {"suite": "limits", "rows": [{"name": "memory to memory", "unit": "GB/s", "images_per_s": 9761}]}
    (tmp_path / "limits.json").write_text(json.dumps(limits))
    for file in (tmp_path / "limits.json", RESULTS / "gpu" / "limits.json"):
        done = CliRunner().invoke(main, ["bench", "plot", str(file), "--out", str(tmp_path / "p")])
        assert done.exit_code == 2
        assert f"{file} has nothing to draw" in done.stderr
    assert not (tmp_path / "p").exists()
