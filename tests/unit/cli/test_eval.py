"""`pinstream eval` as far as it goes without a server; tests/server/test_accuracy.py goes on with one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pinstream_cli.eval import _command
from pinstream_cli.main import main
from tests.network import closed_port

CONTENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
}


def run(directory: Path, *arguments: str) -> Result:
    options = ["--annotations", str(directory / "annotations.json"), "--images", str(directory), *arguments]
    return CliRunner().invoke(main, ["eval", *options])


def refused(directory: Path, *arguments: str) -> str:
    """Runs a command that has to fail with one line and exit code 2."""
    result = run(directory, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "annotations.json").write_text(json.dumps(CONTENT))
    (tmp_path / "a.jpg").touch()
    return tmp_path


def test_a_server_that_is_not_there_is_one_line(folder: Path) -> None:
    with closed_port() as netloc:
        assert "no Triton server answers" in refused(folder, "-u", netloc)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "is not in COCO's format"),
        ("{}", "no 'images' in it"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, "no 'bbox' in it"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}]}, "not in COCO's format"),
        ({"annotations": [{"image_id": 4, "category_id": 1, "bbox": [0, 0, 5, 5]}]}, "4 for one, are not among its"),
        ({"categories": [{"id": 2, "name": "dog"}]}, "1 category ids of annotations, 1 for one"),
        ({"images": [], "annotations": []}, "lists no image"),
        ({"images": [{"id": 1, "file_name": "b.jpg"}]}, "none of the 1 images .*, b.jpg for one"),
    ],
)
def test_unusable_annotations_are_one_line(folder: Path, content: Any, said: str) -> None:
    text = content if isinstance(content, str) else json.dumps({**CONTENT, **content})
    (folder / "annotations.json").write_text(text, encoding="latin-1")
    line = refused(folder)
    assert re.search(said, line), line


def test_missing_files_are_one_line(folder: Path) -> None:
    (folder / "a.jpg").unlink()
    assert "none of the 1 images" in refused(folder)
    (folder / "annotations.json").unlink()
    assert "cannot be read: No such file or directory" in refused(folder)


def test_images_that_are_no_directory_are_one_line(folder: Path) -> None:
    assert "is not a directory" in refused(folder, "--images", str(folder / "a.jpg"))


@pytest.mark.parametrize("text", ["high", "0", "101", "95,", "95;80"])
def test_qualities_that_are_none_are_refused(folder: Path, text: str) -> None:
    result = run(folder, "--jpeg-quality", text)
    assert result.exit_code == 2
    assert f"'{text}' is no list of qualities" in result.stderr


def test_a_model_to_serve_that_is_not_there_is_one_line(folder: Path) -> None:
    assert "--model" in refused(folder, "--serve", str(folder / "none.onnx"))


def test_a_server_that_eval_starts_is_not_encrypted(folder: Path) -> None:
    line = refused(folder, "--serve", str(folder), "--tls-ca", str(folder / "ca.pem"))
    assert "--serve starts a server that is not encrypted" in line


@pytest.mark.parametrize("words", [["-H", "authorization: Bearer abc "], ["--header=authorization:Bearer abc"]])
def test_the_result_file_has_no_headers(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pinstream", "eval", *words, "--images", "pictures"])
    told = _command([("authorization", "Bearer abc")])
    assert "abc" not in told
    assert told.endswith("--images pictures")
    assert "authorization" in told
