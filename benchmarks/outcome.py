"""What a script here leaves: JSON that says what it is of, with the fields that results of `pinstream bench` have."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark import environment

# What a row of any result on speed has, null where the script measures no such thing.
FIELDS = ("name", "batch", "concurrency", "images_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "spread")


def about() -> dict[str, Any]:
    """Of the script that runs: its name as the suite, its command, when, of which commit and on which machine."""
    name = Path(sys.argv[0]).stem
    words = ["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]
    return {"suite": name.replace("_", "-"), **environment.origin(environment.command(words))}


def write(result: Mapping[str, Any], out: Path) -> None:
    """Keep a result; its rows get the fields that they lack."""
    if "rows" in result:
        result = {**result, "rows": [{**dict.fromkeys(FIELDS), **row} for row in result["rows"]]}
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
