"""One measurement at a time on a machine: two would disturb each other without a word."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pinstream_cli.benchmark.perf_analyzer import SHARED_MEMORY
from pinstream_cli.errors import CommandError

# Where perf_analyzers get into each other's way, which name their regions alike.
LOCK = SHARED_MEMORY / "pinstream-bench.lock"


@contextmanager
def alone(notice: Callable[[str], None], lock: Path | None = None) -> Iterator[None]:
    """Wait until nobody else measures on this machine, and keep others waiting meanwhile.

    The lock ends with the process that has it, however that ends; the file stays.

    Args:
        notice: Told in one line where somebody else measures.
        lock: The file that is locked; this machine's by default.

    Raises:
        CommandError: There can be no such file.
    """
    lock = lock or LOCK
    try:
        descriptor = _opened(lock)
    except OSError as error:
        raise CommandError(f"{lock}, which keeps others from measuring, cannot be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(
                "Another `pinstream bench` or `tune` measures on this machine: waiting for its end (Ctrl-C gives up)"
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _opened(lock: Path) -> int:
    """Opened to read only, so that whoever's file it is can be locked; the directory is everybody's."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        return os.open(lock, flags)
    try:
        return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # somebody else was faster
        return os.open(lock, flags)
