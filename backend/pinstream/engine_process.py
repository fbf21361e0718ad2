"""The script of the process that owns an engine for several instances; shared/process.py starts it.

Reads its order from standard input, so that nothing of it shows in the process list.
"""

from __future__ import annotations

import logging
import signal
import sys
import time

if __name__ == "__main__":
    # Ctrl-C in a terminal is for the server, which then stops the instances, and they this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # This script's directory is the package's own, and first on sys.path.
    import pinstream_package

    pinstream_package.import_beside(__file__)
    # Severity, time and process in front, as Triton's own lines have it: they end up between those.
    header = "%(levelname).1s%(asctime)s.%(msecs)03d000 %(process)d %(filename)s:%(lineno)d] [pinstream] %(message)s"
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format=header, datefmt="%m%d %H:%M:%S")

    from pinstream.shared.process import run

    sys.exit(run(sys.stdin.read()))
