"""The processes of a `pinstream serve`, as /proc shows them: the server, models' instances, the engines they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.server.serve_process import Serve
from tests.server.test_leftovers import tritonserver


@dataclass(frozen=True)
class Process:
    """One process. Of two with the same number it is `began` that tells them apart.

    Attributes:
        pid: Its number.
        began: When it was started, in clock ticks since the machine was.
    """

    pid: int
    began: int


@dataclass(frozen=True)
class Family:
    """The processes of one server.

    Attributes:
        server: Tritonserver.
        stubs: The instances of models.
        engines: What the instances have started: engines that several of them share.
    """

    server: Process
    stubs: tuple[Process, ...]
    engines: tuple[Process, ...]

    @property
    def members(self) -> tuple[Process, ...]:
        """All of them."""
        return (self.server, *self.stubs, *self.engines)


@dataclass(frozen=True)
class _Status:
    process: Process
    name: str
    state: str
    parent: int


def family(serve: Serve) -> Family:
    """The processes of a server that runs, dead ones that nobody has waited for among them."""
    return family_of(tritonserver(serve))


def family_of(server: int) -> Family:
    """The same, of the tritonserver with that process id; ProcessLookupError where it has ended."""
    everyone = _everyone()
    if server not in everyone:
        raise ProcessLookupError(f"tritonserver, process {server}, has ended")
    stubs = [s for s in everyone.values() if s.parent == server and s.name.startswith("triton_python")]
    parents = {stub.process.pid for stub in stubs}
    engines = [s for s in everyone.values() if s.parent in parents]
    return Family(everyone[server].process, _processes(stubs), _processes(engines))


def still_there(processes: Iterable[Process]) -> list[Process]:
    """Those that run, or that have ended and wait for a parent of theirs to ask how.

    Orphans that have ended wait for process 1, which is none of a server.
    """
    everyone = _everyone()
    found = [everyone[p.pid] for p in processes if p.pid in everyone and everyone[p.pid].process == p]
    return [status.process for status in found if status.state != "Z" or status.parent != 1]


def out_of_place(before: Family, now: Family, killed: Iterable[Process], instances: int, engines: int) -> list[str]:
    """What is wrong with the processes after some of them were killed, in words.

    Each instance has one process, and so has each engine that is shared. What was killed is gone, not even left as a
    zombie, and so is what it has left behind without a parent.
    """
    gone = {*killed, *before.members} - ({*now.members} - {*killed})
    wrong = [f"should be gone and is still there: {process}" for process in still_there(gone)]
    for found, expected, what in ((now.stubs, instances, "instances"), (now.engines, engines, "shared engines")):
        if len(found) != expected:
            wrong.append(f"processes of {what}: expected {expected}, found {found}")
    return wrong


def _processes(found: Iterable[_Status]) -> tuple[Process, ...]:
    return tuple(status.process for status in found)


def _everyone() -> dict[int, _Status]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold blanks and parentheses.
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            fields, pid = rest.split(), int(path.parent.name)
            found[pid] = _Status(Process(pid, int(fields[19])), name, fields[0], int(fields[1]))
    return found
