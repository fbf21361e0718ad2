"""What a forked child must not go on using: connections, locks and regions of its parent."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that a child has to begin anew."""

    def after_fork(self) -> None:
        """Called in the child, where the fork left one thread. Locks may be held by threads that are no more."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_after_fork(one: Forkable) -> None:
    """Has ``after_fork`` called in every child, as long as the object lives."""
    _forkables.add(one)


class ForkGate:
    """Has a fork wait until no call is under way in a library that cannot be forked within one.

    That is gRPC: where a thread is within it, it leaves its own preparations for the fork out, and the child may hang
    at its first call. Calls that come meanwhile wait until the fork is done.

    Args:
        patience_s: How long a fork waits; then it takes its chance.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self._patience_s = patience_s
        self._begin_anew()

    def __enter__(self) -> None:
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._forks:
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Lets nobody in, and waits for those within."""
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: self._inside == 0, self._patience_s)

    def after_fork_in_parent(self) -> None:
        """Lets everybody in again."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Nobody is within: the fork left one thread."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forks = 0


GRPC_GATE = ForkGate()


def _in_child() -> None:
    GRPC_GATE.after_fork_in_child()
    for one in list(_forkables):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    # gRPC prepares itself within fork(2), after these.
    os.register_at_fork(
        before=GRPC_GATE.before_fork, after_in_parent=GRPC_GATE.after_fork_in_parent, after_in_child=_in_child
    )
