"""Calls that run in threads while their caller does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from .cancellation import Cancellation
from .forking import renew_after_fork

Result = TypeVar("Result")

# Threads are made when all others are busy. What is submitted beyond them waits for one.
MOST_THREADS = 256


class Call(Future[Result], Generic[Result]):
    """A result that is on its way: a `concurrent.futures.Future` whose `cancel` reaches the server."""

    def __init__(self, cancellation: Cancellation) -> None:
        super().__init__()
        self._cancellation = cancellation

    def cancel(self) -> bool:
        """Gives the call up. One that has begun ends at once: with the error `Cancelled`, or with an answer just come.

        Returns:
            False if it had ended already.
        """
        if super().cancel():
            return True
        if self.done():
            return False
        self._cancellation.cancel()
        return True


class CallPool:
    """Threads for calls; made when they are needed, and anew in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        renew_after_fork(self)

    def start(self, run: Callable[[Cancellation], Result]) -> Call[Result]:
        """Runs ``run`` in a thread."""
        cancellation = Cancellation()
        call = Call[Result](cancellation)

        def work() -> None:
            if not call.set_running_or_notify_cancel():
                return
            try:
                result = run(cancellation)
            except BaseException as error:
                call.set_exception(error)
            else:
                call.set_result(result)

        def dropped(future: Future[None]) -> None:
            if future.cancelled():
                call.cancel()

        self._threads().submit(work).add_done_callback(dropped)
        return call

    def close(self) -> None:
        """Cancels what has not begun and waits for the rest. May be called twice."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def after_fork(self) -> None:
        """The parent's threads are not in the child."""
        self._lock = threading.Lock()
        self._executor = None

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="pinstream")
            return self._executor
