"""docs/installation.md has every extra of pyproject.toml, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_extra_is_documented() -> None:
    _, _, section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")
    extras = re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE)
    page = (ROOT / "docs" / "installation.md").read_text()
    documented = re.findall(r"^\| (\w+) \|", page, re.MULTILINE)
    assert documented[0] == "extra"
    assert sorted(documented[1:]) == sorted(extras)
