"""What killed servers and clients leave behind: run directories and regions in /dev/shm, told from those in use.

What is in use is locked. A lock and not a process id: the kernel takes it back whatever becomes of the process, it
holds across containers that share /tmp or /dev/shm, and numbers of processes come again.
"""

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
from pinstream_client import regions as clients

RUN_PREFIX = "pinstream-"
LOCK_NAME = "lock"
# As Triton's own regions begin: Tritons of mid-2025 and later let no client have one of that name opened for it.
RESERVED = "triton_python_backend_shm_region_"
# Those of before began with our mark.
# A region that has not got its name yet has a dot before it.
REGION = re.compile(rf"\.?((?:{RESERVED})?pinstream_\d+_[^_]+_)")


def shm_prefix(pid: int, run_name: str) -> str:
    """How the names of a run's regions in /dev/shm begin; `REGION` finds it in them."""
    # What mkdtemp makes up may have a "_" in it.
    return f"{prefix_of(pid)}{run_name[-8:].replace('_', '-')}_"


def prefix_of(pid: int) -> str:
    """How the names of the regions of all runs of a process begin."""
    return f"{RESERVED}pinstream_{pid}_"


def hold(run: Path) -> int:
    """Mark a run directory as in use, for as long as any process has the returned file descriptor open."""
    return _locked(run / LOCK_NAME)


def hold_regions(prefix: str) -> int:
    """Mark the regions of /dev/shm whose names begin so as in use, as `hold` does.

    Raises:
        OSError: /dev/shm is not there or not ours to write.
    """
    return _locked(SHARED_MEMORY / (prefix + LOCK_NAME))


def _locked(path: Path) -> int:
    """A locked file, which tritonserver and its stubs are to inherit."""
    unlocked = path.with_name(f".{path.name}")
    # O_EXCL: /dev/shm is everybody's, and what lies there under that name is a link or a file of somebody else's.
    descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Only now under its name: nobody ever sees it there without an owner.
        unlocked.rename(path)
    except OSError:
        os.close(descriptor)
        unlocked.unlink(missing_ok=True)
        raise
    return descriptor


def close_regions(prefix: str) -> None:
    """Let no other user open the regions whose names begin so: Triton lets all read them, whatever the umask."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        # What lies there by then may be a link of somebody else's.
        with contextlib.suppress(OSError), _opened(region) as descriptor:
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_regions(prefix: str) -> None:
    """Delete the regions whose names begin so, the file that is locked for them last."""
    named = sorted(SHARED_MEMORY.glob(f"{prefix}*"), key=lambda region: region.name == prefix + LOCK_NAME)
    for region in (*SHARED_MEMORY.glob(f".{prefix}*"), *named):
        with contextlib.suppress(OSError):  # somebody else's of such a name, which says nothing of the others
            region.unlink()


def dead_runs() -> list[Path]:
    """Run directories of this user that no process holds any more."""
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError:  # none that can be written to, as is told elsewhere
        return []
    return [run for run in sorted(place.glob(f"{RUN_PREFIX}*")) if _is_dead(run)]


def _is_dead(run: Path) -> bool:
    # O_NOFOLLOW and the owner: /tmp is everybody's, and what is found here is going to be deleted.
    return not run.is_symlink() and _is_own(run) and _is_unlocked(run / LOCK_NAME)


def _is_unlocked(path: Path) -> bool:
    """Whether it is a lock file of ours that nobody holds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
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
    """Regions in /dev/shm with our mark, of this user, whose server or client is gone."""
    found = [region for region in sorted(SHARED_MEMORY.glob("*")) if _is_own(region)]
    ours = {region: match[1] for region in found if (match := REGION.match(region.name))}
    dead = {prefix for prefix in set(ours.values()) if _is_unlocked(SHARED_MEMORY / (prefix + LOCK_NAME))}
    # The file that is locked comes last: should this end in the middle, the rest is still known to be dead.
    servers = sorted((r for r in ours if ours[r] in dead), key=lambda r: (ours[r], r.name == ours[r] + LOCK_NAME))
    return servers + _dead_regions_of_clients()


def _dead_regions_of_clients() -> list[Path]:
    """Those that no server has mapped: else the next client has the server forget them, and removes them."""
    # Of memory on a GPU the file is empty, and all that the next client knows it by.
    dead = [SHARED_MEMORY / name for name in clients.leftovers() if not name.endswith(clients.ON_GPU)]
    in_use = set(_mapped_regions()) if dead else set()
    return [region for region in dead if region.name not in in_use]


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


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
