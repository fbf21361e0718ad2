"""Signals that ask to stop, none of which is lost.

The exception of a signal (Ctrl-C, SIGTERM) comes between any two steps of Python in the main thread. Where that is in a
fork's hooks, a finalizer or a weak reference's callback, Python prints it and passes over it: nobody has heard it then.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Which came. No event: its lock could be taken by what a signal interrupts.
_asked: list[int] = []


def stop_on_signals() -> None:
    """End the program by KeyboardInterrupt on Ctrl-C, on a supervisor's SIGTERM, and at the end of its terminal."""
    _asked.clear()
    for stop in STOPS:
        # What nohup is for.
        if stop != signal.SIGHUP or signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, _stop)


def _stop(number: int, frame: object) -> None:
    # Supervisors that signal a process and its group say it twice, as a terminal that is closed does, and have SIGKILL
    # where they do not want to wait; only a second Ctrl-C means now. Not ignored: children would inherit that.
    if _asked and number != signal.SIGINT:
        return
    _asked.append(number)
    raise KeyboardInterrupt


def check_stops() -> None:
    """To be called again and again by what waits for anything but an end.

    Raises:
        KeyboardInterrupt: A signal has asked to stop, and its own exception was passed over.
    """
    if _asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that ask to stop wait until this is done, and come then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs their handlers elsewhere.
        return
    handlers = {stop: handler for stop in STOPS if callable(handler := signal.getsignal(stop))}
    came: list[int] = []
    try:
        for stop in handlers:
            signal.signal(stop, lambda number, frame: came.append(number))
        yield
    finally:
        _give_back(list(handlers.items()))
        for number in came:
            signal.raise_signal(number)


def _give_back(handlers: Sequence[tuple[signal.Signals, Any]]) -> None:
    """Set every handler, though the exception of the next signal may come as soon as its own is there."""
    if handlers:
        (stop, handler), *others = handlers
        try:
            signal.signal(stop, handler)
        finally:
            _give_back(others)
