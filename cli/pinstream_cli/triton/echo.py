"""What of tritonserver's log is shown as it comes: its warnings and errors, and of those clients cause only so many."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path

from pinstream_cli.triton.server import NO_GPU_NOISE

WARNING_OR_ERROR = re.compile(r"^[WEF]\d{4} ")
# Of what is shown in one window, in characters: a client may choose how long a line is. Some fifty lines of gRPC's.
MOST_SHOWN = 8000
WINDOW_S = 10.0


class Echo:
    """Shows warnings and errors in their order: all of them at first, and once `limit` is called so many in a time.

    A window begins with a line. At its end one line says how many more there were in it.

    Args:
        show: Takes a line.
        log: The file that has every line.
        window_s: Seconds of a window.
    """

    def __init__(self, show: Callable[[str], None], log: Path, window_s: float = WINDOW_S) -> None:
        self._show = show
        self._log = log
        self._window_s = window_s
        self._limited = False
        self._room = MOST_SHOWN
        self._left_out = 0
        self._window: threading.Timer | None = None
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Take a line of the log, and show it if it is a warning or an error and there is room."""
        if not WARNING_OR_ERROR.match(line) or NO_GPU_NOISE.search(line):
            return
        with self._lock:
            if self._limited and not self._has_room(line):
                self._left_out += 1
            else:
                self._show(line)

    def limit(self) -> None:
        """Show only so many from now on: clients are let in, and gRPC writes lines of them before it asks for a key."""
        self._limited = True

    def close(self) -> None:
        """End the window there is; the log goes with the server."""
        with self._lock:
            if self._window is not None:
                self._window.cancel()
            self._end_window("")

    def _has_room(self, line: str) -> bool:
        if self._window is None:
            self._window = threading.Timer(self._window_s, self._time_is_up)
            self._window.daemon = True
            self._window.start()
        if len(line) > self._room:
            return False
        self._room -= len(line)
        return True

    def _time_is_up(self) -> None:
        # A terminal may be closed, and rich ends the program where its pipe is broken.
        with self._lock, contextlib.suppress(Exception, SystemExit):
            self._end_window(f" in {self._window_s:g} s: see {self._log}")

    def _end_window(self, and_where: str) -> None:
        left_out, self._left_out, self._room, self._window = self._left_out, 0, MOST_SHOWN, None
        if left_out:
            self._show(f"... and {left_out:,} more warnings or errors{and_where}")
