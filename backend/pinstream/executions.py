"""Several batches of requests that one instance works on at once, where its engine runs in a process of its own.

An instance of Triton's Python backend is a process, and by itself it answers what it was handed before it takes more.
Here a batch is started in the thread that Triton calls, and finished in another, so that the instance takes the next
one while the engine computes. Called by model.py; no Triton, no CUDA.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from pinstream.loop import Loop

LOGGER = logging.getLogger("pinstream.executions")
Finish = Callable[[], None]


class Executions:
    """Loops that batches of requests are dealt among, and the threads that finish what was started in them.

    Args:
        loops: Each with an engine of its own, which nobody else uses.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._free: SimpleQueue[_Execution] = SimpleQueue()
        self._all = [_Execution(loop, self._free) for loop in loops]
        for execution in self._all[1:]:
            self._free.put(execution)
        self._next = self._all[0]

    def run(self, start: Callable[[Loop], Finish]) -> None:
        """Start a batch of requests in a loop that is free, and have it finished.

        Returns once another batch could be started: as long as none could, Triton is to keep what comes, merge it, and
        hold it against the limits of its queue.

        Args:
            start: Starts it in the loop it is given. What it returns finishes it in another thread, and raises nothing.
        """
        execution = self._next
        execution.work.put(start(execution.loop))
        self._next = self._free.get()

    def idle(self) -> Loop | None:
        """The loop that comes next, where nothing is under way in any of them: whoever calls run may use it instead."""
        return self._next.loop if self._free.qsize() == len(self._all) - 1 else None

    def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        for execution in self._all:
            execution.work.put(None)
        for execution in self._all:
            execution.thread.join()


class _Execution:
    def __init__(self, loop: Loop, free: SimpleQueue[_Execution]) -> None:
        self.loop = loop
        self.work: SimpleQueue[Finish | None] = SimpleQueue()
        self._free = free
        # Nothing that hangs may keep the process from ending.
        self.thread = threading.Thread(target=self._finish_all, daemon=True)
        self.thread.start()

    def _finish_all(self) -> None:
        while finish := self.work.get():
            try:
                finish()
            except Exception:  # whoever comes next must not be handed to a thread that has ended
                LOGGER.exception("a batch was not finished")
            # It holds the requests' memory, which Triton gets back now and not with the next batch.
            finish = None
            self._free.put(self)
