"""How long a search may go on, so that each setting has its part, and its end, the final windows, its time as well."""

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
        self._part_ends = self._ends
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

    def begin(self, to_come: int) -> None:
        """One of the things to try begins, of `to_come` with this one: it has an equal part of the time."""
        self._part_ends = self._now() + (self._ends - self._final_s() - self._now()) / to_come

    def spent(self) -> bool:
        """Whether its part of the time is over, or what is left is for the end."""
        return self._now() >= self._part_ends or self._now() + self._final_s() > self._ends

    def _final_s(self) -> float:
        """What the final windows of two settings take: one load less than there are turns, twice."""
        return (FINAL_WINDOWS + 1) * self._load_s + 2 * FINAL_WINDOWS * self._window_s
