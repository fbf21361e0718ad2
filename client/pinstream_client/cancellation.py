"""Giving a call up from another thread, so that the server hears of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Cancellation:
    """A switch that is thrown once: wakes whoever waits, and cancels what is on its way."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._hook: Callable[[], object] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was thrown."""
        return self._event.is_set()

    def cancel(self) -> None:
        """Throws it. Further calls do nothing."""
        with self._lock:
            self._event.set()
            hook, self._hook = self._hook, None
        if hook is not None:
            hook()

    def wait(self, seconds: float) -> bool:
        """Waits for it; returns whether it was thrown."""
        return self._event.wait(seconds)

    @contextlib.contextmanager
    def cancelling(self, hook: Callable[[], object]) -> Iterator[None]:
        """Has ``hook`` called if it is thrown within the block, or was already."""
        with self._lock:
            thrown = self._event.is_set()
            if not thrown:
                self._hook = hook
        if thrown:
            hook()
        try:
            yield
        finally:
            with self._lock:
                self._hook = None
