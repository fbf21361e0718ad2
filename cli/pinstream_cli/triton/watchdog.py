"""Notices what Triton does not tell: the death of one of its Python stubs, and an engine lost for good in one.

A stub that has lost its GPU context lives on; it says so in the log. One that dies while a new version is loaded takes
nothing down: what was loaded is served on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pinstream_cli.triton.server import TritonServer
from pinstream_cli.triton.stops import check_stops
from pinstream_cli.triton.stubs import Stub

INTERVAL_S = 0.5


class Watchdog:
    """Looks at the stubs of one tritonserver.

    Args:
        server: A server that is ready.
        warn: Told what is wrong and ends nothing.
    """

    def __init__(self, server: TritonServer, warn: Callable[[str], None] = lambda text: None) -> None:
        self._server = server
        self._warn = warn
        self._warned_of: Stub | None = None

    def wait(self) -> str:
        """Wait until the server cannot be relied on any more; says why.

        Raises:
            KeyboardInterrupt: Somebody has asked to stop.
        """
        while True:
            check_stops()
            code = self._server.wait(INTERVAL_S)
            if code is not None:
                return f"Triton ended by itself with code {code}"
            if self._server.lost:
                return self._server.lost
            self._server.close_regions()
            stubs = self._server.stubs
            stubs.look()
            if dead := stubs.dead():
                return str(dead)
            if (stuck := stubs.stuck()) and stuck is not self._warned_of:
                self._warned_of = stuck
                self._warn(
                    f"{stuck} while it was loaded: what is loaded is served, but Triton waits for it for good and "
                    "loads nothing more; take the new version away, or put it right, and start serve again"
                )


class Backoff:
    """How long to wait before the next start: at once after a long life, longer and longer after short ones."""

    SHORT_LIFE_S = 60.0
    LONGEST_S = 30.0

    def __init__(self) -> None:
        self._delay = 0.0

    def next(self, lived_s: float) -> float:
        """Seconds to wait after a life of `lived_s`."""
        self._delay = 0.0 if lived_s >= self.SHORT_LIFE_S else min(max(1.0, self._delay * 2), self.LONGEST_S)
        return self._delay

    def sleep(self, lived_s: float) -> None:
        """Wait as long as `next` says.

        Raises:
            KeyboardInterrupt: Somebody has asked to stop.
        """
        until = time.monotonic() + self.next(lived_s)
        while (left := until - time.monotonic()) > 0:
            check_stops()
            time.sleep(min(left, INTERVAL_S))
