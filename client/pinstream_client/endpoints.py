"""Which of several servers gets the next request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from .forking import renew_after_fork

FIRST_ABSENCE_S = 1.0
LONGEST_ABSENCE_S = 30.0


class Endpoints:
    """Takes servers in turn. One that failed is left out for a while, twice as long after each further failure.

    Args:
        count: Number of servers, known by their indices.
        clock: Seconds that only go up.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0
        self._failures = [0] * count
        self._failed_at = [0.0] * count
        self._back_at = [0.0] * count
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock, and is not in the child."""
        self._lock = threading.Lock()

    def pick(self, tried: Collection[int] = ()) -> int:
        """The server to ask: the next one in turn that is not left out and was not tried.

        Where there is none, the one not tried that comes back first; where all were tried, the next one in turn.
        """
        count = len(self._failures)
        if count == 1:
            return 0
        with self._lock:
            turn = [(self._next + step) % count for step in range(count)]
            fresh = [server for server in turn if server not in tried] or turn
            now = self._clock()
            present = [server for server in fresh if self._back_at[server] <= now]
            chosen = present[0] if present else min(fresh, key=lambda server: self._back_at[server])
            self._next = (chosen + 1) % count
            # Whoever is the first to ask a server again asks alone; the others wait for what comes of it.
            if self._failures[chosen]:
                self._back_at[chosen] = now + self._absence(chosen)
            return chosen

    def failed(self, server: int) -> None:
        """The server did not answer: leave it out for a while."""
        with self._lock:
            now = self._clock()
            # Calls that were under way together fail together: that is one failure.
            if not self._failures[server] or now - self._failed_at[server] >= FIRST_ABSENCE_S:
                self._failures[server] += 1
                self._failed_at[server] = now
            self._back_at[server] = now + self._absence(server)

    def answered(self, server: int) -> None:
        """The server answered: it takes part again."""
        if self._failures[server]:
            with self._lock:
                self._failures[server], self._back_at[server] = 0, 0.0

    def _absence(self, server: int) -> float:
        # The exponent is bounded so that a server dead for days does not overflow a float.
        return float(min(LONGEST_ABSENCE_S, FIRST_ABSENCE_S * 2 ** min(self._failures[server] - 1, 16)))
