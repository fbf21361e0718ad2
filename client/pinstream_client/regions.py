"""Regions of shared memory that inputs travel through: made, reused, and removed whatever happens to the process."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

DIRECTORY = Path("/dev/shm")
PREFIX = "pinstream-client-"
ON_GPU = "-gpu"  # how the names of regions of GPU memory end


class Region(Protocol):
    """Memory that a server on this host can be told to read.

    Attributes:
        name: Under which servers know it; no other region has it.
        host: uint8 [nbytes], where the process writes.
        known_to: Indices of the servers that it is registered with.
    """

    name: str
    host: NDArray[np.uint8]
    known_to: set[int]

    def publish(self, nbytes: int) -> None:
        """Makes the first ``nbytes`` of ``host`` what servers read."""

    def register(self, transport: Any, timeout: float) -> Any:
        """Registers it with a server, by `Transport` or `AsyncTransport`."""

    def unregister(self, transport: Any, timeout: float) -> Any:
        """Has a server forget it."""

    def remove(self, forgotten: bool = True) -> None:
        """Removes it from this host.

        Args:
            forgotten: Whether every server has forgotten it. Else what tells of it stays where it has to, for the next
                client to have it forgotten.
        """

    def abandon(self) -> None:
        """Lets go of it in a forked child: it is the parent's."""


class SystemRegion:
    """A region of system shared memory: a file in /dev/shm.

    The file stays locked as long as its process lives, however that ends. So an unlocked one is a dead process's, even
    where the process numbers of two containers meet in one /dev/shm. tritonclient's own regions have no such mark.

    Args:
        nbytes: Size.

    Raises:
        OSError: /dev/shm is not there, full, or not ours to write.
    """

    def __init__(self, nbytes: int) -> None:
        self.known_to: set[int] = set()
        descriptor, self.name = locked_file()
        try:
            # Unlike a mere size this takes the memory now: a full /dev/shm is an error here, not a SIGBUS later.
            os.posix_fallocate(descriptor, 0, nbytes)
            # Opened once more: a mapping keeps its descriptor, and with it the lock, beyond `abandon`.
            with (DIRECTORY / self.name).open("r+b") as file:
                self.host = np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)
        except BaseException:
            os.close(descriptor)
            (DIRECTORY / self.name).unlink(missing_ok=True)
            raise
        self._descriptor = descriptor

    def publish(self, nbytes: int) -> None:
        """Servers read the same memory: there is nothing to do."""

    def register(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        return transport.register_system_region(self.name, f"/{self.name}", len(self.host), timeout)

    def unregister(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        return transport.unregister_system_region(self.name, timeout)

    def remove(self, forgotten: bool = True) -> None:
        """See `Region`. What the server still knows is a file without a name, and nothing else."""
        (DIRECTORY / self.name).unlink(missing_ok=True)
        os.close(self._descriptor)  # the mapping goes with the array, which someone may still hold

    def abandon(self) -> None:
        """See `Region`."""
        os.close(self._descriptor)  # else the lock would outlive the parent


def remove_leftovers() -> list[str]:
    """Removes the regions that dead processes of this user left behind; returns their names."""
    removed = []
    for name in leftovers():
        with contextlib.suppress(OSError):
            (DIRECTORY / name).unlink()
            removed.append(name)
    return removed


def leftovers() -> list[str]:
    """The regions that dead processes of this user left behind."""
    found = []
    for path in sorted(DIRECTORY.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and _owner_is_dead(path):
                found.append(path.name)
    return found


def _owner_is_dead(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def locked_file(ending: str = "") -> tuple[int, str]:
    """A new empty file in /dev/shm that says whose a region is and, as long as it is locked, that its owner lives.

    Returns:
        The descriptor, which is to be closed with the region, and the name.

    Raises:
        OSError: /dev/shm is not there or not ours to write.
    """
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}{ending}"
    unlocked = DIRECTORY / f".{name}"
    descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Only now under its name: another process takes what is not locked for a leftover.
    unlocked.rename(DIRECTORY / name)
    return descriptor, name
