"""`make demo` with nothing named: the built-in model on the built-in picture, through a real Triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2


def test_the_demo_finds_what_is_in_the_picture_and_stops(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pinstream_cli", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # One of everything that the model knows is in the picture.
    for name in (Path(__file__).parents[2] / "models" / "shapes.txt").read_text().split("\n"):
        assert name in done.stdout
    assert "yolox_preprocess" in done.stdout
    assert "Triton has stopped" in done.stderr
    assert cv2.imread(str(tmp_path / "demo" / "demo.png")) is not None


def test_a_missing_image_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pinstream_cli", "demo", "--image", str(tmp_path / "none.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no image: ")
    assert len(done.stderr.splitlines()) == 1
