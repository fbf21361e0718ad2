"""What a forked child must not go on using: connections, locks and regions of its parent."""

from __future__ import annotations

import os
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


def _in_child() -> None:
    for one in list(_forkables):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
