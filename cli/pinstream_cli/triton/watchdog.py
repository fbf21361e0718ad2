"""Notices what Triton does not tell: the death of one of its Python stubs, and an engine lost for good in one.

A stub is the process of a model instance. Where one is killed or crashes, Triton 2.51 leaves the model READY and
answers its requests with INTERNAL for good. It does not reap the process either, which is how its death is seen. A stub
that has lost its GPU context lives on; it says so in the log.
"""

from __future__ import annotations

import time
from pathlib import Path

from pinstream_cli.triton.server import TritonServer

INTERVAL_S = 0.5
# A stub that ends because its model is unloaded is reaped in less.
LOOKS_BEFORE_DEAD = 3
_STUB = "triton_python_b"  # as far as the kernel keeps the name


class Watchdog:
    """Looks at the stubs of one tritonserver.

    Args:
        server: A server that is running.
    """

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._models: dict[int, str] = {}
        self._seen_dead: dict[int, int] = {}
        # Whose process it was can be told only while it lives.
        self._dead_stub()

    def wait(self) -> str:
        """Wait until the server cannot be relied on any more; says why."""
        while True:
            code = self._server.wait(INTERVAL_S)
            if code is not None:
                return f"Triton ended by itself with code {code}"
            if self._server.lost:
                return self._server.lost
            dead = self._dead_stub()
            if dead is not None:
                return f"the process of model '{self._models.get(dead, '?')}' has died (process {dead})"

    def _dead_stub(self) -> int | None:
        """A stub that has been dead for a while, or None."""
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        dead = set()
        for pid in self._stubs(children):
            if _state(pid) == "Z":
                dead.add(pid)
            elif pid not in self._models:
                self._models[pid] = _model_of(pid)
        self._seen_dead = {pid: self._seen_dead.get(pid, 0) + 1 for pid in dead}
        return next((pid for pid, looks in self._seen_dead.items() if looks >= LOOKS_BEFORE_DEAD), None)

    def _stubs(self, children: Path) -> list[int]:
        # Any of Triton's threads may have started a stub.
        found = []
        for listing in children.parents[1].glob("*/children"):
            try:
                found += [int(pid) for pid in listing.read_text().split()]
            except OSError:
                continue
        return [pid for pid in found if _name(pid).startswith(_STUB)]


def _status(pid: int) -> tuple[str, str]:
    """Name and state out of /proc/PID/stat: `123 (name) S ...`."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "", ""
    return name, rest.strip()[:1]


def _name(pid: int) -> str:
    return _status(pid)[0]


def _state(pid: int) -> str:
    return _status(pid)[1]


def _model_of(pid: int) -> str:
    """The model that a stub serves, whose version's model.py or backend it was started with, then the model's name."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return "?"
    # <repository>/<model>/<version>/model.py
    return Path(words[1]).parent.parent.name if len(words) > 1 else "?"


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
        """Wait as long as `next` says."""
        time.sleep(self.next(lived_s))
