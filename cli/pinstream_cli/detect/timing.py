"""The server's own time split of a run."""

from __future__ import annotations

import time

from pinstream_client import Detector, ModelTiming, PinstreamError, Statistics


class TimeSplit:
    """The server's counters from the moment this is made."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._before = _statistics(detector)

    def until_now(self) -> tuple[ModelTiming, ...]:
        """Averages since the start, the ensemble first; empty when the server does not tell them."""
        after = _statistics(self._detector) if self._before else None
        return after.since(self._before) if self._before and after else ()


def settled_statistics(detector: Detector, patience_s: float = 0.5) -> Statistics:
    """The counters once they stand still: Triton counts a request a moment after it has answered it."""
    deadline = time.monotonic() + patience_s
    latest = detector.statistics()
    while time.monotonic() < deadline:
        time.sleep(0.02)
        previous, latest = latest, detector.statistics()
        if latest == previous:
            break
    return latest


def _statistics(detector: Detector) -> Statistics | None:
    """The server's counters, or None: a server that does not tell them must not cost the user the results."""
    try:
        return settled_statistics(detector)
    except PinstreamError:
        return None
