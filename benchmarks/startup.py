"""How long a server takes until it is READY: with nothing cached, with caches warm, and right after a build.

    python -m benchmarks.startup SERVICE --out benchmarks/results/startup-gpu.json

SERVICE is what `pinstream build --plan` made on this machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.outcome import about, write
from pinstream_cli.benchmark import environment
from pinstream_cli.console import Console
from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints

READY = re.compile(r"^  (\S+) +READY +([\d.]+) s", re.MULTILINE)
STEPS = re.compile(r"loaded in (.*)$", re.MULTILINE)


def start(service: Path, name: str, cache: str | None) -> dict[str, Any]:
    """Start a server and stop it; the row of it."""
    if cache is None:
        os.environ.pop("XDG_CACHE_HOME", None)
    else:
        os.environ["XDG_CACHE_HOME"] = cache
    text = io.StringIO()
    began = time.monotonic()
    with serving(service, endpoints=Endpoints.free(), console=Console(file=text, width=400), verbose=True):
        seconds = time.monotonic() - began
    log = text.getvalue()
    steps = STEPS.search(log)
    row = {
        "name": name,
        "seconds": round(seconds, 2),
        "models": {model: float(ready) for model, ready in READY.findall(log)},
        "detector": steps[1].rstrip() if steps else "",
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    built = json.loads((arguments.service / "model.json").read_text())
    own_cache = os.environ.get("XDG_CACHE_HOME")
    rows = [start(arguments.service, "first start after pinstream build", own_cache)]
    with tempfile.TemporaryDirectory() as cache:
        rows.append(start(arguments.service, "cold: nothing compiled", cache))
        rows += [start(arguments.service, "warm", cache) for _ in range(arguments.repetitions)]
    result = {
        **about(),
        "versions": environment.versions(tensorrt=f"{built['tensorrt']['flavour']} {built['tensorrt']['version']}"),
        "notes": [
            "seconds: from the command until every model is READY and the server listens, checks included.",
            "models: since tritonserver's start; detector: the steps of its load. Files are in the page cache.",
        ],
        "plans": [plan["file"] for plan in built["plans"]],
        "rows": rows,
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
