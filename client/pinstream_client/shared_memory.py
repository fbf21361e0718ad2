"""Inputs through shared memory: a pool of regions, and what the servers know of them."""

from __future__ import annotations

import atexit
import contextlib
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .cluster import Cluster
from .errors import Cancelled, DeadlineExceeded, PinstreamError, RegionUnknown, ServerUnreachable
from .forking import renew_after_fork
from .options import Options
from .session import Session
from .steps import Ask, Steps
from .transport import Deadline

if TYPE_CHECKING:
    from .regions import Region

Call: TypeAlias = "Callable[[Any, float], Any]"

_GOODBYE_S = 1.0  # what a server gets to forget a region; one that is gone has forgotten it


class SharedMemoryRefused(UserWarning):
    """Shared memory does not work with a server: the client sends the same tensors within its requests."""


class SharedMemory:
    """The regions of one client.

    Args:
        cluster: The servers.
        options: How to reach them, for the goodbye when the process ends without a close.
        make: Makes a region of so many bytes.
    """

    def __init__(self, cluster: Cluster, options: Options, make: Callable[[int], Region]) -> None:
        self._cluster = cluster
        self._options = options
        self._make = make
        self._refusing: set[int] = set()
        self._lock = threading.Lock()
        self._regions: list[Region] = []
        self._idle: list[Region] = []
        # Of dead processes, by the servers that may still have them; None until somebody has looked.
        self._leftovers: dict[int, list[str]] | None = None
        renew_after_fork(self)
        _open.add(self)

    @property
    def refused(self) -> bool:
        """Whether no server takes part in it."""
        return len(self._refusing) == len(self._cluster.addresses)

    def take(self, nbytes: int) -> Region | None:
        """A region for the caller alone, an idle one if there is one; None where there can be none."""
        if self.refused:
            return None
        with self._lock:
            for index, region in enumerate(self._idle):
                if len(region.host) >= nbytes:
                    return self._idle.pop(index)
        try:
            region = self._make(nbytes)
        except (OSError, PinstreamError) as error:
            self._refuse(range(len(self._cluster.addresses)), f"this machine has none ({error})")
            return None
        with self._lock:
            self._regions.append(region)
        return region

    def give_back(self, region: Region) -> None:
        """Makes a region idle. A server may still read it for a call that was given up: nobody reads that answer."""
        with self._lock:
            if region in self._regions:
                self._idle.append(region)

    def ask(self, server: int, region: Region, through: Call, without: Call, deadline: Deadline) -> Steps[Any]:
        """Asks a server with an input in a region, or without where the server refuses shared memory.

        Args:
            server: Its index.
            region: Where the input lies.
            through: Asks a server that knows the region; given a transport and a timeout in seconds.
            without: Asks with the same input in the request.
            deadline: Of the whole call.
        """
        for _ in range(2):
            if not (yield from self._registered(server, region, deadline)):
                break
            try:
                return (yield Ask(server, through, deadline.left()))
            except RegionUnknown:  # the server was started anew
                region.known_to.discard(server)
        return (yield Ask(server, without, deadline.left()))

    def close(self) -> Steps[None]:
        """Has all servers forget the regions, and removes them."""
        _open.discard(self)
        with self._lock:
            regions, self._regions, self._idle = self._regions, [], []
        silent: set[int] = set()
        busy: set[int] = set()
        for region in regions:
            for server in region.known_to - silent:
                try:
                    yield Ask(server, region.unregister, _GOODBYE_S)
                except PinstreamError as error:
                    silent.add(server)  # what it does not answer for one it will not for the next
                    if isinstance(error, DeadlineExceeded):
                        busy.add(server)
            region.remove(forgotten=not region.known_to & busy)

    def at_exit(self) -> None:
        """`close` for whoever did not, over connections of its own."""
        with contextlib.suppress(PinstreamError):
            session = Session(self._cluster, self._options, "client")
            session.run(self.close())
            session.close()

    def after_fork(self) -> None:
        """In a child the regions are the parent's."""
        _open.discard(self)
        for region in self._regions:
            region.abandon()
        self._lock = threading.Lock()
        self._regions, self._idle = [], []
        _open.add(self)

    def _registered(self, server: int, region: Region, deadline: Deadline) -> Steps[bool]:
        if server in self._refusing:
            return False
        if server in region.known_to:
            return True
        yield from self._sweep(server, deadline)
        try:
            yield Ask(server, region.register, deadline.left())
        except (ServerUnreachable, DeadlineExceeded, Cancelled):
            raise
        except PinstreamError as error:
            # UNAVAILABLE as well: with it recent servers say that they take no shared memory.
            if "already" not in str(error):
                self._refuse([server], str(error))
                return False
        region.known_to.add(server)
        return True

    def _sweep(self, server: int, deadline: Deadline) -> Steps[None]:
        """Before the first region: removes what dead processes left behind, here and at the server."""
        while (name := self._next_leftover(server)) is not None:
            try:
                yield Ask(server, partial(_forget, name), min(_GOODBYE_S, deadline.left()))
            except (ServerUnreachable, DeadlineExceeded, Cancelled):
                return  # registering will say it
            except PinstreamError:
                continue  # a server without GPUs knows none of their regions

    def _next_leftover(self, server: int) -> str | None:
        with self._lock:  # of several threads one looks, and each name goes to one of them
            if self._leftovers is None:
                from .regions import remove_leftovers  # needs Linux, as the regions themselves do

                names = remove_leftovers()
                self._leftovers = {index: list(names) for index in range(len(self._cluster.addresses))}
            names = self._leftovers[server]
            return names.pop() if names else None

    def _refuse(self, servers: range | list[int], reason: str) -> None:
        with self._lock:  # several threads may learn of it at once
            fresh = set(servers) - self._refusing
            self._refusing |= fresh
        if not fresh:
            return
        where = ", ".join(str(self._cluster.addresses[server]) for server in sorted(fresh))
        warnings.warn(
            f"no shared memory with {where}, images are sent within the requests: {reason} "
            "(a server has to run on this host; a recent Triton needs --allow-client-shm=true)",
            SharedMemoryRefused,
            stacklevel=2,
        )


def _forget(name: str, transport: Any, timeout: float) -> Any:
    from .regions import ON_GPU

    if name.endswith(ON_GPU):
        return transport.unregister_cuda_region(name, timeout)
    return transport.unregister_system_region(name, timeout)


# Clients that were not closed yet.
_open: set[SharedMemory] = set()


@atexit.register
def _close_all() -> None:
    for memory in list(_open):
        memory.at_exit()
