"""Keeps all cores awake while a command runs, to tell what waking up costs: `python -m benchmarks.awake COMMAND...`."""

from __future__ import annotations

import subprocess
import sys

from pinstream_cli.triton.awake import awake

if __name__ == "__main__":
    with awake():
        sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
