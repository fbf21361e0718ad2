"""What a killed `pinstream serve` leaves behind: run directories and regions in /dev/shm, told from those in use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.triton.preflight import SHARED_MEMORY

RUN_PREFIX = "pinstream-"
LOCK_NAME = "lock"
REGION = re.compile(r"pinstream_(\d+)_")


def shm_prefix(pid: int, run_name: str) -> str:
    """How the names of a run's regions in /dev/shm begin; `REGION` reads the process id out of it."""
    return f"pinstream_{pid}_{run_name[-8:]}_"


def hold(run: Path) -> int:
    """Mark a run directory as in use, for as long as any process has the returned file descriptor open.

    A lock and not a process id: the kernel takes it back whatever becomes of the process, it holds across containers
    that share /tmp, and numbers of processes come again. tritonserver and its stubs inherit it.
    """
    unlocked = run / f".{LOCK_NAME}"
    descriptor = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Only now under its name: nobody ever sees it there without an owner.
    unlocked.rename(run / LOCK_NAME)
    return descriptor


def dead_runs() -> list[Path]:
    """Run directories of this user that no process holds any more."""
    return [run for run in sorted(Path(tempfile.gettempdir()).glob(f"{RUN_PREFIX}*")) if _is_dead(run)]


def _is_dead(run: Path) -> bool:
    try:
        # O_NOFOLLOW and the owner: /tmp is everybody's, and what is found here is going to be deleted.
        if run.is_symlink() or run.stat().st_uid != os.geteuid():
            return False
        descriptor = os.open(run / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def dead_regions() -> list[Path]:
    """Regions in /dev/shm with our mark, of this user, whose process is gone and that no process has mapped."""
    ours = {region: match for region in sorted(SHARED_MEMORY.iterdir()) if (match := REGION.match(region.name))}
    candidates = [region for region, match in ours.items() if not _alive(int(match[1])) and _is_own(region)]
    in_use = set(_mapped_regions()) if candidates else set()
    return [region for region in candidates if region.name not in in_use]


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _mapped_regions() -> Iterator[str]:
    """Names of the regions of /dev/shm that any process that we may look into has mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            for line in maps.read_text(errors="replace").splitlines():
                _, found, name = line.partition(f"{SHARED_MEMORY}/")
                if found:
                    yield name.removesuffix(" (deleted)")


def remove() -> list[Path]:
    """Delete what is left of dead runs.

    Returns:
        What was deleted.
    """
    gone = dead_runs() + dead_regions()
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return gone
