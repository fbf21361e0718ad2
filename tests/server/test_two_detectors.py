"""Two detectors at once: a second service beside the first in one repository, as docs/configuration.md has it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from pinstream_cli.triton.assemble import service_repository
from pinstream_client import Detector
from tests.server.running import running
from tests.server.test_polling import build

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


def commands() -> str:
    """The lines of the page that make the second service."""
    (found,) = re.findall(r"(?:^    .*\n)+(?<=/config.pbtxt\n)", CONFIGURATION.read_text(), re.MULTILINE)
    return str(found)


def test_the_client_chooses_between_two_detectors(tmp_path: Path) -> None:
    repository = tmp_path / "my_service"
    shutil.copytree(service_repository(), repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(repository / "yolox_detector" / "1")
    build(tmp_path / "one", ["one_a", "one_b"]).rename(repository / "yolox_detector" / "1")
    build(tmp_path / "built_b", ["two_a", "two_b"])
    subprocess.run(["bash", "-euc", commands()], cwd=tmp_path, check=True)
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    with running(repositories=[repository]) as server:
        for model, names in (("yolox", {"one_a", "one_b"}), ("yolox_b", {"two_a", "two_b"})):
            with Detector(f"grpc://{server.grpc_url}", model=model, timeout=20) as detector:
                found = {each.name for each in detector.detect(image, conf=0.0, max_det=50)}
            assert found
            assert found <= names
