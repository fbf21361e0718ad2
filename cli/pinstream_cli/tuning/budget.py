"""How long a search may go on, so that each setting has its part, and its end, the final windows, its time as well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from pinstream_cli.tuning.final import FINAL_WINDOWS

# Windows of a trial, or of a second look: two or three at each of two concurrencies, mostly.
OF_A_TRIAL = 5


class Budget:
    """The time of a search.

    Args:
        limit_s: Seconds for all of it.
        now: A clock.

    Attributes:
        ends: When it is over, by the clock.
    """

    def __init__(self, limit_s: float = math.inf, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.ends = now() + limit_s
        self._part_ends = self.ends
        self._load_s = 0.0
        self._windows_s: list[float] = []

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A model is being loaded and warmed up meanwhile."""
        began = self._now()
        yield
        self._load_s = max(self._load_s, self._now() - began)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A window is being measured meanwhile."""
        began = self._now()
        yield
        self._windows_s.append(self._now() - began)

    def begin(self, to_come: int) -> None:
        """One of the things to try begins, of `to_come` with this one: it has an equal part of the time."""
        self._part_ends = self._now() + (self.ends - self._final_s() - self._now()) / to_come

    def spent(self) -> bool:
        """Whether its part of the time is over, or what one more trial would leave is too short for the end."""
        now = self._now()
        trial_s = self._load_s + OF_A_TRIAL * self._window_s()
        return now >= self._part_ends or now + trial_s + self._final_s() > self.ends

    def _final_s(self) -> float:
        """What the end takes: a second look at what was there, and the final windows of two settings.

        Those take one load less than there are turns.
        """
        return (FINAL_WINDOWS + 1) * self._load_s + (OF_A_TRIAL + 2 * FINAL_WINDOWS) * self._window_s()

    def _window_s(self) -> float:
        # Not the longest: a few of them wait for quiet, and take long.
        return median(self._windows_s) if self._windows_s else 0.0
