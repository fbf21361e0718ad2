"""Clients in threads, none of which may end unnoticed: a client that is gone finds no wrong answers any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class ClientThreads:
    """Runs clients until it is told to stop.

    Args:
        clients: Each runs until `stopped` is set, and ends by itself only where something is wrong.
        stopped: Tells them to end.
    """

    def __init__(self, clients: Iterable[Callable[[], None]], stopped: threading.Event) -> None:
        self._stopped = stopped
        self._threads = [threading.Thread(target=client, daemon=True) for client in clients]

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start them all."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float) -> list[str]:
        """End them all.

        Args:
            patience_s: How long each may take to end.

        Returns:
            What was wrong, in words: clients that had ended before, or that do not end.
        """
        all_of_them = len(self._threads)
        ended = all_of_them - self.running
        self._stopped.set()
        for thread in self._threads:
            thread.join(patience_s)
        stuck = self.running
        faults = [f"{ended} of {all_of_them} clients had ended before they were told to"] if ended else []
        return faults + ([f"{stuck} of {all_of_them} clients do not end within {patience_s} s"] if stuck else [])


def in_words(error: Exception) -> str:
    """An exception that no client foresaw, for a report: its type, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
