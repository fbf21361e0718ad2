"""The script of the process that owns an engine for several instances; shared/process.py starts it.

Reads its order from standard input, so that nothing of it shows in the process list.
"""

from __future__ import annotations

import logging
import sys

if __name__ == "__main__":
    # This script's directory is the package's own, and first on sys.path.
    import pinstream_package

    pinstream_package.import_beside(__file__)
    logging.basicConfig(level=logging.INFO, format="[pinstream] %(message)s")

    from pinstream.shared.process import run

    sys.exit(run(sys.stdin.read()))
