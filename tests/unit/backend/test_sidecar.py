"""Sidecars: what is written is what is read, and what is malformed says so."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pinstream.sidecar import Sidecar, SidecarError, TensorEntry, check_model_file, file_sha256, read, write

SIDECAR = Sidecar(
    kind="onnx",
    file="model.onnx",
    sha256="2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    inputs=(TensorEntry("images", "UINT8", (-1, 64, 64, 3)),),
    outputs=(TensorEntry("candidates", "FP32", (-1, 300, 6)),),
    labels=("cat", "größer"),
    sections={"yolox": {"num_classes": 2}, "checks": []},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    write(path, SIDECAR)
    assert read(path) == SIDECAR
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.json"]
    fields = list(json.loads(path.read_text()))
    assert fields == ["format", "kind", "file", "sha256", "inputs", "outputs", "labels", "yolox", "checks"]


def test_a_write_that_fails_leaves_the_old_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    write(path, SIDECAR)
    with pytest.raises(TypeError):
        write(path, dataclasses.replace(SIDECAR, sections={"not json": object()}))
    assert read(path) == SIDECAR
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected format 1, found 2"),
        ({"format": None}, "expected format 1, found None"),
        ({"sha256": None}, "expected a string, found None"),
        ({"inputs": {}}, "expected a list"),
        ({"inputs": [{"name": "images", "shape": [1]}]}, "the field 'dtype' is missing"),
        ({"inputs": [{"name": "images", "dtype": "UINT8", "shape": ["batch"]}]}, "batch"),
        ({"inputs": ["images"]}, "string indices"),
        ({"labels": [1]}, "expected a string, found 1"),
        ({"file": "../../etc/passwd"}, "own directory"),
    ],
)
def test_a_malformed_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(SIDECAR.to_json()) | change))
    with pytest.raises(SidecarError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("field", ["kind", "file", "sha256", "inputs", "outputs"])
def test_a_missing_field(field: str, tmp_path: Path) -> None:
    content = json.loads(SIDECAR.to_json())
    del content[field]
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(SidecarError, match=f"the field '{field}' is missing"):
        read(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "found a list"),
    ],
)
def test_a_file_that_is_no_sidecar(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(SidecarError, match=message):
        read(tmp_path / "model.json")


def test_a_sidecar_belongs_to_one_model_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    with pytest.raises(SidecarError, match="cannot be read"):
        check_model_file(tmp_path, SIDECAR)
    model.write_bytes(b"hello")
    assert file_sha256(model) == SIDECAR.sha256
    assert check_model_file(tmp_path, SIDECAR) == model
    model.write_bytes(b"hellO")
    with pytest.raises(SidecarError, match=r"the sidecar was written for 2cf24dba5fb0\.\.\.; build the model again"):
        check_model_file(tmp_path, SIDECAR)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.json")
    (tmp_path / "model.onnx").symlink_to("/dev/zero")
    with pytest.raises(SidecarError, match="is no regular file"):
        read(tmp_path / "model.json")
    with pytest.raises(OSError, match="is no regular file"):
        file_sha256(tmp_path / "model.onnx")
