"""Keeps all cores awake while a command runs: `python benchmarks/awake.py COMMAND...`.

On a virtual machine a core that has nothing to do is given back to the host, and getting it again takes 30 to 100
microseconds, several times a request. Servers that care are set to idle without sleeping (Linux: the boot parameter
idle=poll, or 0 in /dev/cpu_dma_latency where the kernel has a choice of idle states). Where neither can be had, one
process a core does it here that runs only when nothing else wants to (SCHED_IDLE). For telling what waking up costs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """No core sleeps in here."""
    children = [_spinner(core) for core in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _spinner(core: int) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while os.getppid() == parent:
        for _ in range(100_000):
            pass
    os._exit(0)


if __name__ == "__main__":
    with awake():
        sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
