"""The Python stubs of a tritonserver, each the process of one model instance, as /proc shows them.

Where one is killed or crashes, Triton 2.51 leaves the model READY and answers its requests with INTERNAL for good. It
does not reap the process either, which is how its death is seen. It does the same where one is stopped, by SIGSTOP or a
debugger. Of one that dies while its model is loaded, Triton either says so within seconds, and reaps it, or waits for
it for good.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pinstream_cli.triton.loads import Loads, Version

# A stub that ends because its model is unloaded is reaped in less.
DEAD_S = 1.0
LOOK_EVERY_S = 0.2
# So long one may be stopped; of the time between two looks no more than this counts, as who looks may be stopped, too.
STOPPED_S = 3.0
UNSEEN_S = 1.0
# Where Triton notices that a stub has died while it was loaded, it takes up to 4.
STUCK_S = 10.0
_STUB = "triton_python_b"  # as far as the kernel keeps the name
_NAME = 8  # which of a stub's arguments


@dataclass
class Stub:
    """One stub.

    Attributes:
        pid: Its process id.
        seen: When it was first seen, as time.monotonic().
        version: What it serves; None where it died too soon to be asked.
        completing: Whether it only completes the configuration, and then ends by itself.
        talks: Since when it has had the thread that begins with a word to Triton, as time.monotonic().
        serving: Whether it was seen alive while its version was not being loaded.
        died: When it was first seen dead.
        stopped_s: Seconds that it was seen stopped, up to now.
    """

    pid: int
    seen: float
    version: Version | None = None
    completing: bool = False
    talks: float | None = None
    serving: bool = False
    died: float | None = None
    stopped_s: float = 0.0

    def __str__(self) -> str:
        whose = f"model '{self.version.model}'" if self.version else "a model"
        what = f"has been stopped for {self.stopped_s:.0f} s, as by SIGSTOP" if self.stopped_s else "has died"
        return f"the process of {whose} {what} (process {self.pid})"


class Stubs:
    """Looks at the stubs of one server.

    Args:
        server: Process id of tritonserver.
        loads: What its log says.
    """

    def __init__(self, server: int, loads: Loads) -> None:
        self._server = server
        self._loads = loads
        self._stubs: dict[int, Stub] = {}
        self._looked = 0.0

    def look(self) -> None:
        """Look again, if it is time: whose process it was can be told only while it lives."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        passed, self._looked = min(now - self._looked, UNSEEN_S), now
        there = {pid: status for pid in _children(self._server) if (status := _status(pid)).name == _STUB}
        self._stubs = {pid: self._stubs.get(pid) or Stub(pid, now) for pid in there}
        for pid, stub in self._stubs.items():
            status = there[pid]
            stub.stopped_s = stub.stopped_s + passed if status.state in ("T", "t") else 0.0
            if status.state == "Z":
                stub.died = stub.died or now
                continue
            if status.threads > 1:
                stub.talks = stub.talks or now
            if stub.version is None:
                stub.version, stub.completing = _task_of(pid)
            stub.serving = stub.serving or (stub.version is not None and stub.version not in self._loads.loading)

    def runs(self, version: Version) -> bool:
        """Whether a version had a process at the last look."""
        return any(stub.version == version and stub.died is None for stub in list(self._stubs.values()))

    def dead(self) -> Stub | None:
        """One that answers nothing any more while Triton goes on calling its model ready, or None."""
        stopped = [stub for stub in self._stubs.values() if stub.stopped_s > STOPPED_S]
        return next(filter(self._served, [*self._dead_for(DEAD_S), *stopped]), None)

    def stuck(self) -> Stub | None:
        """One that has died while its model was loaded, which Triton has not noticed, or None."""
        return next(filter(self._is_loading, self._dead_for(STUCK_S)), None)

    def end_loads(self) -> None:
        """Kill those whose versions are only being loaded; Triton then takes the load for one that has failed.

        Not before they have had their first word, which Triton would wait for for good, as it would for the last one of
        those that complete a configuration.
        """
        self.look()
        for stub in self._stubs.values():
            talks = stub.talks is not None and stub.talks < self._looked
            loading = stub.version is not None and self._is_loading(stub) and not stub.completing
            if loading and talks and stub.died is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stub.pid, signal.SIGKILL)

    def _dead_for(self, seconds: float) -> list[Stub]:
        before = time.monotonic() - seconds
        return [stub for stub in self._stubs.values() if stub.died is not None and stub.died <= before]

    def _served(self, stub: Stub) -> bool:
        """Whether it was of a version that is served, and not of one that was only to be."""
        if stub.serving:
            return True
        failed = [
            failure.at for version, failure in list(self._loads.failures.items()) if stub.version in (version, None)
        ]
        return not self._is_loading(stub) and not any(at > stub.seen for at in failed)

    def _is_loading(self, stub: Stub) -> bool:
        if stub.serving:
            return False
        return bool(self._loads.loading) if stub.version is None else stub.version in self._loads.loading


def _children(server: int) -> list[int]:
    # Any of Triton's threads may have started one.
    found = []
    for listing in Path(f"/proc/{server}/task").glob("*/children"):
        try:
            found += [int(pid) for pid in listing.read_text().split()]
        except OSError:
            continue
    return found


class _Status(NamedTuple):
    name: str = ""
    state: str = ""
    threads: int = 0


def _status(pid: int) -> _Status:
    """What /proc/PID/stat has of a process: `123 (name) S ...`."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return _Status()
    fields = rest.split()
    return _Status(name, fields[0], int(fields[17]))


def _task_of(pid: int) -> tuple[Version | None, bool]:
    """What a stub serves, and whether it only completes the configuration, out of what it was started with.

    `<repository>/<model>/<version>/model.py`, and further behind the name of the instance, or there that of the model.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None, False
    directory = Path(words[1]).parent if len(words) > 1 else Path()
    if not directory.name.isdecimal():
        return None, False
    version = Version(directory.parent.name, int(directory.name))
    return version, words[_NAME : _NAME + 1] == [version.model]
