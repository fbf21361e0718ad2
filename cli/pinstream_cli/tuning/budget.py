"""How long a search may go on, so that its end, the final windows, has its time as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pinstream_cli.tuning.search import FINAL_WINDOWS


class Budget:
    """The time of a search.

    Args:
        limit_s: Seconds for all of it.
        now: A clock.
    """

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ends = now() + limit_s
        self._load_s = 0.0
        self._window_s = 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A model is being loaded meanwhile."""
        began = self._now()
        yield
        self._load_s = max(self._load_s, self._now() - began)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A window is being measured meanwhile."""
        began = self._now()
        yield
        self._window_s = max(self._window_s, self._now() - began)

    def spent(self) -> bool:
        """Whether what is left is for the final windows of two settings: one load less than there are turns, twice."""
        final = (FINAL_WINDOWS + 1) * self._load_s + 2 * FINAL_WINDOWS * self._window_s
        return self._now() + final > self._ends
