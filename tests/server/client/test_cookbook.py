"""The recipes of docs/cookbook.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.client.conftest import PICTURE, ROOT, url_of
from tests.server.running import Running

COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text()
RECIPES = re.findall(r"^## (\d+)\. ([^\n]+)\n(.*?)(?=^## |\Z)", COOKBOOK, re.DOTALL | re.MULTILINE)
# What a recipe has to have printed, by its number.
SAYS = {
    1: r"\d\.\d\d at \[",
    2: r"^\('ball', 'cube', .*\)$",
    3: r"^picture\.jpg [1-9]",
    4: r"picture\.jpg: [1-9]\d* objects\nleft out: .*\nleft out: cannot read image file missing\.jpg",
    5: r"'image_id': 17",
    6: r"^50$",
    7: r"sent through shm$",
    8: r"^[1-9]",
    9: r"^[1-9]",
    10: r"'images' UINT8 \[\?, 416, 416, 3\].*\(1, \d+, 6\)\ninput 'images' UINT8 .*float32",
}


def test_there_are_ten() -> None:
    assert [int(number) for number, _, _ in RECIPES] == list(SAYS) == list(range(1, 11))


@pytest.mark.parametrize(("number", "title", "text"), RECIPES, ids=[title for _, title, _ in RECIPES])
def test_recipe_runs(
    number: str,
    title: str,
    text: str,
    shapes: Running,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.jpg").write_bytes(PICTURE.read_bytes())
    given: dict[str, Any] = {
        "URL": url_of(shapes, "grpc"),
        "HTTP_URL": url_of(shapes, "http"),
        "frames": [np.ascontiguousarray(pixels[:, 16 * step :]) for step in range(6)],
    }
    exec(compile(code, f"cookbook recipe {number}", "exec"), given)
    said = capsys.readouterr().out
    assert re.search(SAYS[int(number)], said, re.DOTALL | re.MULTILINE), said
