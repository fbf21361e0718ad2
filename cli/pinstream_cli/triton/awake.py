"""Keeps cores from falling asleep: for a server whose requests come one at a time and are to be answered at once.

On a virtual machine a core that has nothing to do is given back to the host, and getting it again takes 30 to 100
microseconds, several times a request. Servers that care are set to idle without sleeping (Linux: the boot parameter
idle=poll, or 0 in /dev/cpu_dma_latency where the kernel has a choice of idle states). Where neither can be had, one
process a core does it here, which runs only when nothing else wants to (SCHED_IDLE). Linux only.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.errors import CommandError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
# It ends with its parent, whatever ends that.
SPINNER = """
import os, sys
parent, core = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """No core that this process may use sleeps in here.

    Raises:
        CommandError: This process has only a share of the CPU's time, which that would use up.
    """
    if limit := cpu_limit():
        raise CommandError(
            f"keeping cores awake would use up this container's share of the CPU ({limit}), and the server would be "
            "held back; leave --awake out, or give the container whole cores (docker: --cpuset-cpus, not --cpus)"
        )
    with contextlib.ExitStack() as stack:
        for core in os.sched_getaffinity(0):
            stack.callback(_end, _spinner(core))
        yield


def _spinner(core: int) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C is for the server.
    command = [sys.executable, "-I", "-S", "-c", SPINNER, str(os.getpid()), str(core)]
    return subprocess.Popen(command, start_new_session=True)


def _end(spinner: subprocess.Popen[bytes]) -> None:
    spinner.kill()
    spinner.wait()


def cpu_limit() -> str:
    """The limit of CPU time that holds for this process, as the kernel has it; empty where there is none."""
    for line in OWN_CGROUP.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, name, unlimited = CGROUPS, "cpu.max", "max"
        elif "cpu" in controllers.split(","):
            root, name, unlimited = CGROUPS / "cpu", "cpu.cfs_quota_us", "-1"
        else:
            continue
        own = root / path.lstrip("/")
        for directory in (own, *own.parents):
            # A container sees its own group as the root, or not at all.
            limit = (directory / name).read_text().strip() if (directory / name).is_file() else unlimited
            if not limit.startswith(unlimited):
                return f"{name} is {limit}"
    return ""
