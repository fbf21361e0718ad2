"""What a script here leaves: JSON that says what it is of, as the results of `pinstream bench` do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark import environment


def about() -> dict[str, Any]:
    """Of the script that runs: its name as the suite, its command, when, of which commit and on which machine."""
    name = Path(sys.argv[0]).stem
    words = ["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]
    return {"suite": name.replace("_", "-"), **environment.origin(environment.command(words))}


def write(result: Mapping[str, Any], out: Path) -> None:
    """Keep a result."""
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
