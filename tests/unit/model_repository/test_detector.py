"""Reading the detector's sidecar out of the same repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolox_steps.detector import Detector, DetectorError, read_detector


def sidecar(height: int = 416, width: int = 608, candidates: int = 300, **fields: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "images", "dtype": "UINT8", "shape": [-1, height, width, 3]}],
        "outputs": [{"name": "candidates", "dtype": "FP32", "shape": [-1, candidates, 6]}],
        "labels": ["cat", "dog"],
        **fields,
    }


def put(repository: Path, content: Any, version: str = "1") -> None:
    directory = repository / "yolox_detector" / version
    directory.mkdir(parents=True)
    (directory / "model.json").write_text(content if isinstance(content, str) else json.dumps(content))


def read(repository: Path) -> Detector:
    return read_detector(repository / "yolox_preprocess" / "1", "yolox_detector")


def test_reads_size_candidates_and_labels(tmp_path: Path) -> None:
    put(tmp_path, sidecar())
    assert read(tmp_path) == Detector(height=416, width=608, candidates=300, labels=("cat", "dog"))


def test_takes_the_newest_version_by_number(tmp_path: Path) -> None:
    for version, height in (("2", 32), ("10", 64), ("9", 96)):
        put(tmp_path, sidecar(height=height), version)
    put(tmp_path, sidecar(height=128), "old")
    (tmp_path / "yolox_detector" / "11").mkdir()
    assert read(tmp_path).height == 64


def test_a_model_without_labels_has_none(tmp_path: Path) -> None:
    content = sidecar()
    del content["labels"]
    put(tmp_path, content)
    assert read(tmp_path).labels == ()


def test_a_missing_sidecar_is_named_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"yolox_detector/1/model\.json does not exist.*pinstream serve --model"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        {},
        sidecar(inputs=[]),
        sidecar(inputs=[{"name": "x"}]),
        sidecar(inputs=[{"shape": [-1, 3, 416, 416]}]),
        sidecar(outputs=[{"shape": [-1, 300, 85]}]),
        sidecar(outputs=[{"shape": [-1, 300]}]),
        sidecar(height=-1),
        sidecar(candidates=-1),
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_sidecar_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    put(tmp_path, content)
    with pytest.raises(DetectorError, match=r"model\.json.*pinstream build"):
        read(tmp_path)
