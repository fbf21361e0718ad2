"""The client's procedures, written once for threads and for asyncio.

A procedure (ask for the labels, try again elsewhere, register a region) is a generator that yields what it wants done
and is sent what came of it. `session.Session` runs it by blocking, `async_session.AsyncSession` by awaiting.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from .errors import PinstreamError
from .transport import Deadline


@dataclass(frozen=True)
class Ask:
    """Ask one server.

    Attributes:
        server: Its index.
        call: Given the server's `Transport` or `AsyncTransport` and the timeout; gives the answer, or awaits it.
        timeout: Seconds that are left for it.
    """

    server: int
    call: Callable[[Any, float], Any]
    timeout: float


@dataclass(frozen=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Do something that takes the CPU or a disk a while: on asyncio's side in a thread."""

    call: Callable[[], Any]


Step: TypeAlias = "Ask | Pause | Work"
Result = TypeVar("Result")
# What a procedure of this package returns: run it to have the result.
Steps: TypeAlias = Generator[Step, Any, Result]
_POLL_S = 0.1


def until_ready(check: Callable[[Deadline], Steps[None]], timeout: float, attempt_timeout: float) -> Steps[None]:
    """Tries `check` until it returns.

    Args:
        check: Raises PinstreamError while something is not ready.
        timeout: Seconds for all of it.
        attempt_timeout: Seconds for one try.

    Raises:
        PinstreamError: It did not return within ``timeout``: the last reason.
    """
    deadline = Deadline(timeout)
    while True:
        try:
            return (yield from check(Deadline(min(attempt_timeout, max(deadline.left(), _POLL_S)))))
        except PinstreamError:
            if deadline.left() <= _POLL_S:
                raise
        yield Pause(_POLL_S)
