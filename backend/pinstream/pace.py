"""When to look for something: all the time, or when it should be there by what it took before.

A sleeping thread wakes up late, by 50 to 150 microseconds on a virtual machine: much beside a batch of one millisecond.
Looking all the time answers at once and takes a core; sleeping for most of the usual time and looking then takes a
fraction of one. No Triton, no CUDA.
"""

from __future__ import annotations

import enum

# How much sooner than usual one begins to look, and for how much longer one goes on: more than a wake-up is late, and
# no more than a share of the whole, so that looking never takes more than twice that share of a core.
MARGIN_S = 200e-6
MARGIN_SHARE = 1 / 8
# Share of the newest in what is taken to be usual.
NEWEST = 1 / 8


class Looking(enum.Enum):
    """Whether one who waits looks all the time: where nothing else is under way, the core has nothing better to do."""

    NEVER = "never"
    ALONE = "alone"
    ALWAYS = "always"

    def now(self, alone: bool) -> bool:
        """Whether to look all the time now.

        Args:
            alone: Nothing else is under way.
        """
        return self is Looking.ALWAYS or (self is Looking.ALONE and alone)


class Pace:
    """What things of one kind usually take, learned as they are done; a kind is a batch size, say."""

    def __init__(self) -> None:
        self._usual: dict[int, float] = {}

    def took(self, kind: int, seconds: float, *, overslept: bool = False) -> None:
        """One is done.

        Args:
            kind: Of what.
            seconds: From its beginning until it was seen to be done.
            overslept: It was done at the first look after a pause, so it may have been for a while: without this, a
                late wake-up would lengthen the next pause, and that the next.
        """
        usual = self._usual.get(kind, seconds)
        if overslept:
            shortest = min(usual, seconds)
            self._usual[kind] = shortest - _margin(shortest)
        else:
            self._usual[kind] = usual + (seconds - usual) * NEWEST

    def pause(self, kind: int, elapsed: float) -> float | None:
        """Seconds to sleep before looking for one that began `elapsed` seconds ago; 0 to look at once.

        Returns:
            None where nothing is known of its kind, or it is late: it may take any time.
        """
        usual = self._usual.get(kind)
        if usual is None or elapsed > usual + _margin(usual):
            return None
        return max(0.0, usual - _margin(usual) - elapsed)


def _margin(usual: float) -> float:
    return min(MARGIN_S, usual * MARGIN_SHARE)
