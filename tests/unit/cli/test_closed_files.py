"""`pinstream serve` as a user who may not look at what it names, as with a volume that another user mounted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.build_error import BuildError
from pinstream_cli.onnx_files import load_onnx
from pinstream_cli.serve import serve
from tests import onnx_models
from tests.server.conftest import add_model

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--model", "{closed}/classifier/1/model.onnx"],
            "cannot be looked at: Permission denied; let this user read it",
        ),
        (["--model", "{closed}"], "cannot be looked at: Permission denied; let this user read it"),
        (["--model-repository", "{closed}"], "cannot be looked at: Permission denied; let this user read it"),
        (
            ["--model-repository", "{closed}", "--verify"],
            "cannot be looked at: Permission denied; let this user read it",
        ),
        (
            ["--model", "m.onnx", "--tls-cert", "{closed}/x", "--tls-key", "{closed}/y"],
            "is not a file that can be read",
        ),
        (["--model", "m.onnx", "--api-key-file", "{closed}/x"], "cannot be read: Permission denied"),
    ],
    ids=["model", "built", "repository", "verify", "certificate", "key"],
)
def test_what_this_user_may_not_look_at_is_told_in_a_line(tmp_path: Path, options: Sequence[str], words: str) -> None:
    closed = tmp_path / "closed"
    onnx_models.classifier(add_model(closed, "classifier"))
    closed.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        result = CliRunner().invoke(serve, [option.format(closed=closed) for option in options])
    finally:
        os.seteuid(0)
    assert result.exit_code == 2, result.exception
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
def test_build_tells_it_as_well(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(BuildError, match="let this user read it"):
            load_onnx(closed / "model.onnx")
    finally:
        os.seteuid(0)
