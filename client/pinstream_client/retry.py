"""How often, and how long after another, a call is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter, for transient errors only and never beyond the call's timeout.

    Full jitter - each pause is drawn between nothing and the backoff - spreads the clients of a server that comes back.

    Attributes:
        attempts: Rounds over the servers, the first one included; 1 tries nothing again. A server that is there and has
            no room for the request now (UNAVAILABLE) is asked beyond that, until the timeout.
        first: Upper bound of the first pause, in seconds. Each further bound is twice the one before.
        longest: Highest bound, in seconds.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.longest < self.first:
            raise ValueError(f"{self}: expected attempts of at least 1, and 0 <= first <= longest seconds")

    def pauses(self) -> Iterator[float]:
        """Seconds before the second round, the third and so on; without end."""
        bound = self.first
        while True:
            bound = min(self.longest, bound)
            yield random.uniform(0, bound)
            bound *= 2

    def goes_on(self, rounds: int, busy: bool) -> bool:
        """Whether there is another round after so many; ``busy`` says that a server was there and had no room."""
        return rounds < self.attempts or (busy and self.attempts > 1)


RETRY = Retry()
NO_RETRY = Retry(attempts=1)
