"""Reading the detector's sidecar out of the same repository."""

from __future__ import annotations

import hashlib
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


def put_whole(repository: Path, version: str, *, broken: bool = False, **fields: Any) -> Path:
    """A version as it is built: a sidecar that has the SHA-256 of the file beside it; broken, of another."""
    model = f"model of {version}".encode()
    put(repository, sidecar(file="model.plan", sha256=hashlib.sha256(model).hexdigest(), **fields), version)
    file = repository / "yolox_detector" / version / "model.plan"
    file.write_bytes(b"broken" if broken else model)
    return file


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


@pytest.mark.parametrize(
    ("policy", "height"),
    [
        ("version_policy { specific { versions: [ 1 ] } }", 32),
        ("version_policy: { specific: { versions: 1 versions: 2 } }", 64),
        ("version_policy < specific <\n# none of 3\nversions: 1 > >", 32),
        ("version_policy { specific { versions: [ 1, 3, 9 ] } }", 96),
        ("version_policy { latest { num_versions: 2 } }", 96),
        ("version_policy { all { } }", 96),
        ("# version_policy { specific { versions: [ 1 ] } }", 96),
        ('name: "version_policy { specific { versions: [ 1 ] } }"', 96),
        ("", 96),
    ],
)
def test_takes_the_newest_that_the_version_policy_takes(tmp_path: Path, policy: str, height: int) -> None:
    for version, size in (("1", 32), ("2", 64), ("3", 96)):
        put_whole(tmp_path, version, height=size)
    (tmp_path / "yolox_detector" / "config.pbtxt").write_text(f'backend: "pinstream"\n{policy}\n')
    assert read(tmp_path).height == height


def test_passes_over_a_version_whose_model_is_another_or_missing(tmp_path: Path) -> None:
    # Triton does not load it, and goes on with the one before.
    put_whole(tmp_path, "1", height=32)
    put_whole(tmp_path, "2", height=64, broken=True)
    put_whole(tmp_path, "3", height=96).unlink()
    put(tmp_path, "not JSON", "4")
    put(tmp_path, sidecar(height=128, file="../1/model.plan", sha256=5), "5")
    assert read(tmp_path).height == 32


def test_takes_a_version_of_which_the_onnx_file_alone_is_there(tmp_path: Path) -> None:
    put_whole(tmp_path, "1", height=32)
    onnx = {"file": "model.onnx", "sha256": hashlib.sha256(b"onnx").hexdigest()}
    file = put_whole(tmp_path, "2", height=64, onnx=onnx)
    file.with_name("model.onnx").write_bytes(b"onnx")
    file.unlink()
    assert read(tmp_path).height == 64
    file.write_bytes(b"broken")
    assert read(tmp_path).height == 32


def test_a_missing_version_that_the_policy_names_is_told(tmp_path: Path) -> None:
    put(tmp_path, sidecar())
    config = "version_policy { specific { versions: [ 7 ] } }"
    (tmp_path / "yolox_detector" / "config.pbtxt").write_text(config)
    with pytest.raises(DetectorError, match=r"yolox_detector/7/model\.json does not exist"):
        read(tmp_path)


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
