"""Places in shared memory for pictures that the detector reads where they lie, instead of getting them through Triton.

What a region and a reference are made of is told in docs/configuration.md ("Inputs by reference"); the backend's
references.py reads them. Called by yolox_preprocess from one thread; no Triton.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

DIRECTORY = Path("/dev/shm")
PREFIX, SUFFIX = "triton_python_backend_shm_region_", "_places"
MAGIC = b"PINSREF1"
REFERENCE = struct.Struct("<8sQQ16s32s")
HEADER, ROWS_AT = 4096, 64
ROW = np.dtype([("token", "<u8", 2), ("filled", "<f8"), ("reader", "<u8")])
# Places of one instance: as many as a request has pictures. What finds none is sent through Triton.
MOST = 32
AT_FIRST = 4
# Seconds after which nobody comes any more for what was referred to, its request having ended on the way. Readers give
# up after PATIENCE_S.
LOST_AFTER_S, PATIENCE_S = 60.0, 50.0
# Seconds in which what is on its way should be read; then a region's name may go.
LEAVE_S = 3.0


@dataclass(frozen=True)
class Held:
    """Places one behind the other.

    Attributes:
        items: Their memory, uint8 [n, bytes of an item], to be filled before the references are sent.
        references: uint8 [n, 72].
        first: Number of the first of them.
    """

    items: Bytes
    references: Bytes
    first: int


class Places:
    """A region of places, all of one size, which grows as it is needed.

    Args:
        name: Of the region, a file in /dev/shm.
        item_bytes: Size of a place.
        most: How many places it may come to have.
        read_within_s: Seconds in which whoever is sent the references begins to read, at most PATIENCE_S. What nobody
            came for is free again ten seconds later.

    Raises:
        OSError: There is no room for it in /dev/shm.
    """

    def __init__(self, name: str, item_bytes: int, most: int = MOST, read_within_s: float = PATIENCE_S) -> None:
        self._name = name
        # Clients may ask for references, and whom the name is told may have Triton open the region for them.
        self._named = hashlib.sha256(os.fsencode(name)).digest()
        self._item_bytes = item_bytes
        self._most = most
        # Readers go by the time at which a place was filled: so much earlier it is said to have been.
        self._earlier_s = PATIENCE_S - read_within_s
        self._count = 0
        unnamed = DIRECTORY / f".{name}"
        # Anybody may have put something there, a link say: only what is made here is written to.
        self._fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Locked as long as this process lives, by which others know what a killed one left.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._grow(min(AT_FIRST, most))
        except OSError:
            unnamed.unlink()
            os.close(self._fd)
            raise
        self._data[: len(MAGIC)] = np.frombuffer(MAGIC, np.uint8)
        self._data[8:16] = np.frombuffer(struct.pack("<Q", item_bytes), np.uint8)
        # Only now under its name: nobody ever sees it there without an owner.
        unnamed.rename(DIRECTORY / name)

    def hold(self, count: int) -> Held | None:
        """Places for `count` items, which are the caller's until whoever is sent the references has read them.

        Returns:
            None where so many are not to be had one behind the other.
        """
        first = self._find(count)
        while first is None and self._count < self._most and count <= self._most:
            try:
                self._grow(min(self._most, 2 * self._count))
            except OSError:
                return None
            first = self._find(count)
        if first is None:
            return None
        token = os.urandom(16)
        rows = self._rows[first : first + count]
        rows["reader"] = 0
        rows["filled"] = time.monotonic() - self._earlier_s
        rows["token"] = np.frombuffer(token, "<u8")
        told = b"".join(REFERENCE.pack(MAGIC, first + i, self._item_bytes, token, self._named) for i in range(count))
        begin = HEADER + first * self._item_bytes
        items = self._data[begin : begin + count * self._item_bytes].reshape(count, self._item_bytes)
        return Held(items, np.frombuffer(told, np.uint8).reshape(count, REFERENCE.size), first)

    def filled(self, held: Held) -> None:
        """Whoever is told of these places has time to read them from now on."""
        self._rows[held.first : held.first + len(held.items)]["filled"] = time.monotonic() - self._earlier_s

    def give_back(self, held: Held) -> None:
        """Nobody will be told of these places."""
        self._rows[held.first : held.first + len(held.items)]["token"] = 0

    def close(self) -> None:
        """Take the region's name away, which whoever reads it for the first time needs."""
        while self._is_awaited():
            time.sleep(0.01)
        (DIRECTORY / self._name).unlink(missing_ok=True)
        os.close(self._fd)

    def _is_awaited(self) -> bool:
        """Whether somebody may be about to look for the region; who reads in it has found it."""
        rows = self._rows[: self._count]
        # Triton ends one instance after the other, each in this time: what was lost before costs none of it.
        recent = rows["filled"] > time.monotonic() - self._earlier_s - LEAVE_S
        return bool((rows["token"].any(axis=1) & (rows["reader"] == 0) & recent).any())

    def _find(self, count: int) -> int | None:
        """The lowest free places, whose memory is most likely still in a cache."""
        free = self._free()
        ends = np.lib.stride_tricks.sliding_window_view(free, count).all(axis=1) if count <= len(free) else free[:0]
        return int(ends.argmax()) if ends.any() else None

    def _free(self) -> npt.NDArray[np.bool_]:
        rows = self._rows[: self._count]
        free: npt.NDArray[np.bool_] = ~rows["token"].any(axis=1)
        if not free.all():
            lost = rows["filled"] < time.monotonic() - LOST_AFTER_S
            for index in np.flatnonzero(lost & ~free):
                free[index] = not _is_alive(int(rows["reader"][index]))
        return free

    def _grow(self, count: int) -> None:
        status = os.statvfs(DIRECTORY)
        more = (count - self._count) * self._item_bytes
        # Triton itself can do nothing where /dev/shm is full, and with half of it, it has more than it ever needs.
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        if free - more < total // 2:
            raise OSError(
                f"/dev/shm is to stay half empty, and {count} places would not leave it so: found {free:,} of "
                f"{total:,} bytes free, and they take {more:,} more; make it larger (docker run --shm-size)"
            )
        size = HEADER + count * self._item_bytes
        os.posix_fallocate(self._fd, 0, size)
        self._data: Bytes = np.frombuffer(mmap.mmap(self._fd, size), np.uint8)
        self._rows = self._data[ROWS_AT:HEADER].view(ROW)
        self._count = count


def _is_alive(process: int) -> bool:
    """Whether a reader is still at it; none (0) is not, nor is one that has died: Triton does not ask how it ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def region_name() -> str | None:
    """A name for this process's region: that of its stub's, with which it is cleared away; None where that has none."""
    for argument in Path("/proc/self/cmdline").read_text(errors="replace").split("\0"):
        if argument.startswith(PREFIX) and (DIRECTORY / argument).exists():
            return argument + SUFFIX
    return None


def remove_dead() -> None:
    """Delete the regions of killed processes of this user, those that had no name yet as well."""
    unnamed = (path for path in DIRECTORY.glob(f".{PREFIX}*{SUFFIX}") if _is_old(path))
    for path in (*DIRECTORY.glob(f"{PREFIX}*{SUFFIX}"), *unnamed):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(fd)


def _is_old(path: Path) -> bool:
    """Whether a file was made so long ago that nobody is about to lock it and give it its name."""
    try:
        return time.time() - path.lstat().st_mtime > LOST_AFTER_S
    except OSError:
        return False
