"""The code of models is compiled where Triton polls; tests/server/test_polling.py asks Triton what comes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pinstream_cli.triton.caches import compile_models

POLL = ["--model-control-mode=explicit", "--model-control-mode", "poll"]


def test_code_is_compiled_where_triton_polls_and_left_alone_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    version = tmp_path / "model" / "1"
    for name, code in (("model.py", "x = 1\n"), ("steps/nms.py", ""), ("broken.py", "def\n")):
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        (version / name).write_text(code)
    for arguments in ([], POLL[:1], [*POLL, "--model-control-mode=none"]):
        compile_models([tmp_path], arguments)
        assert not list(tmp_path.rglob("__pycache__"))
    compile_models([tmp_path], POLL)
    caches = {path.relative_to(version).as_posix() for path in version.rglob("*.pyc")}
    tag = sys.implementation.cache_tag
    assert caches == {f"__pycache__/model.{tag}.pyc", f"steps/__pycache__/nms.{tag}.pyc"}
    assert capfd.readouterr() == ("", "")
