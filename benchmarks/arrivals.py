"""Requests at random times, as from many clients that know nothing of each other."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator


def poisson_arrivals(rate: float, seconds: float, rng: random.Random) -> Iterator[None]:
    """Wait for one arrival of a Poisson process after the other.

    Times are counted from the start, so that one that comes late makes none of the later ones late.

    Args:
        rate: Arrivals a second.
        seconds: The first arrival after so long is the last one.
        rng: Where the times come from.
    """
    due, began = 0.0, time.perf_counter()
    while due < seconds:
        due += rng.expovariate(rate)
        time.sleep(max(0.0, began + due - time.perf_counter()))
        yield
