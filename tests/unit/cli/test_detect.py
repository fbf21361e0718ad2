"""`pinstream detect` as far as it goes without a server; tests/server/test_client.py goes on with one."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pinstream_cli.detect import Run, as_dict, detections_table, timing_table
from pinstream_cli.main import main
from pinstream_client import Detections, Detector, ModelTiming, ServerError
from tests.network import closed_port, silent_server

NAMES = ("person", "dog")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["detect", *arguments])


def two() -> Detections:
    return Detections(
        np.array([[1, 2, 30.26, 40], [1000, 2000, 3000, 4000]]), np.array([0.91, 0.4]), np.array([1, 0]), NAMES
    )


def text_of(table: object, width: int = 500) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False, emoji=False).print(table)
    return file.getvalue().splitlines()


def test_help_names_every_option() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for option in ("-u,", "-i,", "-m,", "-t,", "--out", "--json", "--conf", "--iou", "--max-det", "IMAGE..."):
        assert option in result.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_server_not_there_is_one_line_and_exit_code_2(protocol: str, extra: list[str]) -> None:
    with closed_port() as netloc:
        result = run("a.jpg", "-i", protocol, "-u", netloc, *extra)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: no Triton server answers at {protocol}://{netloc}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_silent_server_ends_with_the_timeout_and_exit_code_2(protocol: str) -> None:
    started = time.monotonic()
    with silent_server() as netloc:
        result = run("a.jpg", "-u", f"{protocol}://{netloc}", "-t", "0.5")
    assert result.exit_code == 2
    assert time.monotonic() - started < 3
    assert "within 0.5 s" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["a.jpg", "--conf", "1.5"], "--conf"),
        (["a.jpg", "--iou", "-1"], "--iou"),
        (["a.jpg", "--max-det", "0"], "--max-det"),
        (["a.jpg", "-t", "0"], "--timeout"),
        (["a.jpg", "-i", "rest"], "--protocol"),
        (["a.jpg", "-u", "http://h:1", "-i", "grpc"], "leave out one of the two"),
        (["a.jpg", "-u", "ftp://h"], "unknown protocol 'ftp'"),
    ],
)
def test_wrong_command_line_is_exit_code_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_directory_that_cannot_be_made_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("a.jpg", "--out", str(tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot make the directory")
    assert result.stderr.count("\n") == 1


def test_table_has_one_unbroken_line_for_each_object_whatever_the_names() -> None:
    path = Path("/very/long/" + "x" * 150) / "[red]dog[/red] :dog:.jpg"
    lines = [line.split() for line in text_of(detections_table([(path, two()), (Path("b.jpg"), two()[:0])]))]
    rows = [line for line in lines if line and (line[0].startswith("/very") or line[0] == "b.jpg")]
    assert [row[2:] for row in rows[:2]] == [
        ["dog", "0.910", "1.0,", "2.0,", "30.3,", "40.0"],
        ["person", "0.400", "1000.0,", "2000.0,", "3000.0,", "4000.0"],
    ]
    assert rows[0][:2] == [str(path).split()[0], ":dog:.jpg"]
    assert rows[2] == ["b.jpg", "(nothing", "found)"]


def test_timing_table_has_the_ensemble_first_and_its_steps_below() -> None:
    timings = [ModelTiming("yolox", 3, 30.5, 1, 2, 3, 4), ModelTiming("yolox_detector", 3, 20.25, 0.5, 1, 2, 3)]
    lines = text_of(timing_table(timings))
    rows = [line.split() for line in lines if "yolox" in line]
    assert rows == [
        ["yolox", "3", "30.50", "1.00", "2.00", "3.00", "4.00"],
        ["yolox_detector", "3", "20.25", "0.50", "1.00", "2.00", "3.00"],
    ]


def test_json_has_every_image_with_its_detections_or_its_error() -> None:
    detector = Detector("http://host:1")
    results: list[tuple[Path, Detections | ServerError]] = [(Path("a.jpg"), two()), (Path("b.jpg"), ServerError("no"))]
    timings = (ModelTiming("yolox", 1, 2, 0, 0, 2, 0),)
    value = json.loads(
        json.dumps(as_dict(Run(detector, list(results), 0.5, timings), {Path("a.jpg"): Path("o/a.png")}))
    )
    assert (value["server"], value["model"], value["seconds"]) == ("http://host:1", "yolox", 0.5)
    assert value["images"][0]["detections"][0]["class"] == "dog"
    assert value["images"][0]["annotated"] == "o/a.png"
    assert value["images"][1] == {"image": "b.jpg", "error": "no"}
    assert value["server_timing"][0]["compute_infer_ms"] == 2
