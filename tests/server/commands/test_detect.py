"""`pinstream detect` against a real tritonserver: sources, outputs, interruption and what comes after it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from pinstream_cli.detect.video import Video, VideoFile
from pinstream_cli.main import main
from tests.server.commands.gate import Gate
from tests.server.running import Running

TIMEOUT_S = "60"
Detect = Callable[..., Result]


@pytest.fixture
def detect(shapes: Running) -> Detect:
    def run(*arguments: object, **given: Any) -> Result:
        command = ["detect", "-t", TIMEOUT_S, "-u", shapes.grpc_url, *map(str, arguments)]
        return CliRunner().invoke(main, command, **given)

    return run


@pytest.fixture
def shots(tmp_path: Path, demo_picture: Path) -> Path:
    """Six good pictures in two directories, and a bad one."""
    directory = tmp_path / "shots"
    (directory / "more").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "more/1.jpg", "more/2.jpg"):
        shutil.copy(demo_picture, directory / name)
    (directory / "bad.jpg").write_text("no image")
    return directory


@pytest.fixture
def clip(tmp_path: Path, demo_picture: Path) -> Path:
    pixels = cv2.imread(str(demo_picture))
    assert pixels is not None
    video = VideoFile(tmp_path / "clip.mp4", 10)
    for number in range(12):
        video.write(np.ascontiguousarray(np.roll(pixels, 4 * number, axis=1)).astype(np.uint8))
    video.close()
    return video.path


def started(url: str, *arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, which can be interrupted."""
    command = [sys.executable, "-m", "pinstream_cli", "detect", "-u", url, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_directory_with_a_bad_image_gives_all_others_a_result_and_exit_code_1(
    detect: Detect, shots: Path, tmp_path: Path
) -> None:
    result = detect(shots, "--save", tmp_path / "found.csv", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "1 of 7 images failed:"
    assert result.stderr.splitlines()[1].startswith(f"  {shots / 'bad.jpg'}: ")
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows if row["class"]} == {str(path) for path in shots.rglob("[0-9].jpg")}
    assert [row["image"] for row in rows if row["error"]] == [str(shots / "bad.jpg")]
    pictures = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert pictures == ["1.png", "2.png", "3.png", "4.png", "more/1.png", "more/2.png"]
    # Nothing but results is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "out", "shots"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*pictures[:4], "more"]


def test_pattern_gives_one_coco_data_set(detect: Detect, shots: Path, tmp_path: Path) -> None:
    result = detect(shots / "**" / "[12].jpg", "--save", tmp_path / "coco.json", "--conf", "0.5")
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in value["images"]] == [
        str(shots / name) for name in ("1.jpg", "2.jpg", "more/1.jpg", "more/2.jpg")
    ]
    assert {entry["image_id"] for entry in value["annotations"]} == {image["id"] for image in value["images"]}
    assert all(entry["score"] >= 0.5 for entry in value["annotations"])
    assert "star" in {entry["name"] for entry in value["categories"]}
    assert "star" in result.stdout  # the summary


def test_standard_input_is_an_image(detect: Detect, demo_picture: Path) -> None:
    by_name = detect(demo_picture, "--format", "jsonl")
    by_pipe = detect("-", "--format", "jsonl", input=demo_picture.read_bytes())
    assert (by_pipe.exit_code, by_pipe.stderr) == (0, "")
    assert json.loads(by_pipe.stdout)["detections"] == json.loads(by_name.stdout)["detections"] != []


def test_verbose_says_a_line_about_each_image(detect: Detect, shots: Path) -> None:
    result = detect(shots / "1.jpg", shots / "bad.jpg", "-v", "--json")
    head, good, bad, *_ = result.stderr.splitlines()
    assert head.startswith("model yolox at grpc://")
    assert good.startswith(f"{shots / '1.jpg'}: ")
    assert good.endswith(" ms")
    assert bad.startswith(f"{shots / 'bad.jpg'}: the server refused")
    assert len(json.loads(result.stdout)["images"]) == 2


def test_video_gives_results_by_frame_and_an_annotated_video(detect: Detect, clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.avi"
    bad.write_text("no video")
    result = detect(clip, bad, "--out", tmp_path / "out", "--format", "jsonl")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "1 of 13 images failed:"
    failed, *frames = (json.loads(line) for line in result.stdout.splitlines())
    assert failed["image"] == str(bad)
    assert [entry["frame"] for entry in frames] == list(range(12))
    assert [entry["time_s"] for entry in frames[:3]] == [0, 0.1, 0.2]
    assert all(entry["detections"] and entry["annotated"] == str(tmp_path / "out" / "clip.mp4") for entry in frames)
    annotated = Video.file(tmp_path / "out" / "clip.mp4")
    assert (annotated.frame_count, annotated.fps) == (12, 10)
    by_tensor = detect(clip, "--transport", "tensor", "--format", "jsonl")
    assert [len(json.loads(line)["detections"]) for line in by_tensor.stdout.splitlines()] == [
        len(entry["detections"]) for entry in frames
    ]
    drawn, sent = (next(iter(video.frames())).pixels for video in (annotated, Video.file(clip)))
    assert drawn.shape == sent.shape
    assert np.abs(drawn.astype(int) - sent).max() > 100  # the boxes


def test_camera_that_is_not_there_is_one_line_and_exit_code_2(detect: Detect) -> None:
    result = detect("99")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no camera 99: ")
    assert result.stderr.count("\n") == 1


# Enough images that the run is still busy when it is interrupted; drawing them takes its time.
@pytest.mark.parametrize(("how", "images"), [(signal.SIGINT, 60), (signal.SIGKILL, 200)])
def test_interrupted_directory_is_resumed(
    shapes: Running, detect: Detect, demo_picture: Path, tmp_path: Path, how: signal.Signals, images: int
) -> None:
    """With --save after a kill, with --out after Ctrl-C."""
    shots, out = tmp_path / "shots", tmp_path / "out"
    shots.mkdir()
    out.mkdir()
    expected = sorted(str(shots / f"{number:04}.jpg") for number in range(images))
    for path in expected:
        os.link(shutil.copy(demo_picture, tmp_path / "demo.jpg"), path)
    found, journal = tmp_path / "found.jsonl", tmp_path / "found.jsonl.part"
    arguments = [shots, "--save", found]
    if how == signal.SIGINT:
        arguments, journal = [shots, "--out", out, "--format", "summary"], out / ".pinstream-detect.part"
    process = started(shapes.grpc_url, *arguments)
    wait_for(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 5)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    done = len(journal.read_bytes().splitlines()) - 1
    assert 5 <= done < images
    assert not found.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in err
        assert "Traceback" not in err

    refused = detect(*arguments, "--conf", "0.9")
    assert refused.exit_code == 2
    assert "conf not given, now 0.9" in refused.stderr

    result = detect(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    earlier = int(result.stdout.partition(f"{images} images (")[2].split()[0])
    assert done - 1 <= earlier <= done  # the last line may have been torn
    assert not journal.exists()
    if how == signal.SIGINT:
        assert sorted(path.name for path in out.iterdir()) == [f"{number:04}.png" for number in range(images)]
    else:
        entries = json_lines(found)
        assert [entry["image"] for entry in entries] == expected
        assert all(entry["detections"] == entries[0]["detections"] != [] for entry in entries)


def test_watched_directory_gives_each_new_image_once_though_the_server_goes_away(
    shapes: Running, demo_picture: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(demo_picture, inbox / "a.jpg")
    journal = tmp_path / "found.jsonl.part"

    def lines() -> int:
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    with Gate(shapes.grpc_url) as gate:
        process = started(gate.url, "--watch", inbox, "--save", tmp_path / "found.jsonl", "-t", TIMEOUT_S)
        request.addfinalizer(process.kill)
        wait_for(lambda: lines() == 2)
        (inbox / "half.jpg").write_bytes(demo_picture.read_bytes()[:1000])
        wait_for(lambda: lines() == 3)
        gate.shut()
        shutil.copy(demo_picture, inbox / "b.jpg")
        assert process.stderr is not None
        assert "waiting for the server" in process.stderr.readline()
        gate.open()
        wait_for(lambda: lines() == 4)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the server is back" in err
    assert f"  {inbox / 'half.jpg'}: " in err
    found = json_lines(tmp_path / "found.jsonl")
    assert [Path(entry["image"]).name for entry in found] == ["a.jpg", "half.jpg", "b.jpg"]
    assert ["detections" in entry for entry in found] == [True, False, True]
    assert journal.exists()  # the next watch goes on
