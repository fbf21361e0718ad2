"""`make demo` with nothing named: the built-in model on the built-in picture, through a real Triton."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2

# Switches loopback on (SIOCSIFFLAGS, IFF_UP), which a network namespace begins without, and becomes its arguments.
WITH_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as lo:
    fcntl.ioctl(lo, 0x8914, struct.pack("16sh", b"lo", 1))
os.execv(sys.argv[1], sys.argv[1:])
"""


def offline(*command: str) -> list[str]:
    """A command that reaches nothing but loopback, where this user may make such a namespace; else as it is."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return list(command)
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        return list(command)
    return ["unshare", "-n", sys.executable, "-c", WITH_LOOPBACK, *command]


def test_the_demo_finds_what_is_in_the_picture_without_a_network_and_stops(tmp_path: Path) -> None:
    command = offline(sys.executable, "-m", "pinstream_cli", "demo", "--out", str(tmp_path / "demo"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # One of everything that the model knows is in the picture.
    for name in (Path(__file__).parents[2] / "models" / "shapes.txt").read_text().split("\n"):
        assert name in done.stdout
    assert "yolox_preprocess" in done.stdout
    assert "Triton has stopped" in done.stderr
    assert cv2.imread(str(tmp_path / "demo" / "demo.png")) is not None


def test_a_missing_image_is_one_line(tmp_path: Path) -> None:
    for image, what in ((tmp_path / "none.jpg", "does not exist"), (tmp_path, "is not a file")):
        command = [sys.executable, "-m", "pinstream_cli", "demo", "--image", str(image)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"error: no image: {image} {what}; name a JPEG, PNG, BMP or WebP file\n"
