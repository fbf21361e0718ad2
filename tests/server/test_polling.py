"""The YOLOX service in a repository that Triton polls, and a new version of its detector that is put there."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.yolox_service import build_service
from pinstream_client import Detector
from tests.server.serve_process import Serve
from tests.yolox_exports import Export

POLLS = ["--model-control-mode=poll", "--repository-poll-secs=1"]
LOADED = "successfully loaded 'yolox_postprocess'"


def build(directory: Path, labels: list[str]) -> Path:
    """A detector of one's own labels."""
    names = directory.with_suffix(".txt")
    names.write_text("\n".join(labels) + "\n")
    export = Export(classes=len(labels), batch=None).save(directory.with_suffix(".onnx"))
    build_service(export, directory, labels=names)
    return directory


def names(serve: Serve) -> set[str]:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    with Detector(f"grpc://{serve.grpc_url}", timeout=20) as detector:
        return {found.name for found in detector.detect(image, conf=0.0, max_det=50)}


def test_the_steps_are_loaded_once_and_keep_to_the_version_that_is_served(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(service_repository(), repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(repository / "yolox_detector" / "1")
    build(tmp_path / "one", ["one_a", "one_b"]).rename(repository / "yolox_detector" / "1")
    second = build(tmp_path / "two", ["two_a", "two_b"])
    serve = Serve("--model-repository", repository, "--verbose", *POLLS)
    try:
        serve.wait_for("Stop with Ctrl-C")
        before = names(serve)
        assert before
        assert before <= {"one_a", "one_b"}
        # NumPy's, of warm-up samples that are no numbers.
        assert "RuntimeWarning" not in serve.text
        time.sleep(3)  # Triton looks three times
        assert serve.text.count(LOADED) == 1
        # Of a version that will not load, and a step that is loaded anew beside it.
        (second / "model.onnx").write_bytes(b"broken")
        second.rename(repository / "yolox_detector" / "2")
        config = repository / "yolox_postprocess" / "config.pbtxt"
        assert '"0.25"' in config.read_text()
        config.write_text(config.read_text().replace('"0.25"', '"0.20"'))
        serve.wait_for("failed to load 'yolox_detector' version 2")
        deadline = time.monotonic() + 30
        while serve.text.count(LOADED) == 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert serve.text.count(LOADED) > 1
        assert names(serve) == before
    finally:
        serve.process.terminate()
        serve.end()
