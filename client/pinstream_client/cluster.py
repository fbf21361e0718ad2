"""One server or several, asked until one of them answers or the time is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .address import Address
from .endpoints import Endpoints
from .errors import DeadlineExceeded, PinstreamError, ServerNotReady, deadline_exceeded
from .payloads import TOLD_EARLIER_S
from .reading import Reading
from .retry import Retry
from .steps import Ask, Pause, Steps
from .transport import Deadline

Result = TypeVar("Result")


@dataclass
class _Round:
    """One round over the servers, in which each is tried once.

    Attributes:
        number: The first one is 1.
        tried: The servers tried in it, by their indices.
        transient: Whether one of them may be otherwise in the next round.
        busy: Whether one of them was there and had no room.
    """

    number: int = 1
    tried: set[int] = field(default_factory=set)
    transient: bool = False
    busy: bool = False

    def failed(self, server: int, error: PinstreamError) -> None:
        """One of the servers was tried and could not answer."""
        self.tried.add(server)
        self.transient |= error.transient
        self.busy |= error.transient and isinstance(error, ServerNotReady)

    def repeats(self, policy: Retry) -> bool:
        """Whether another round may end otherwise, and ``policy`` has one more."""
        return self.transient and policy.goes_on(self.number, self.busy)


class Cluster:
    """The servers of a client, which all serve the same models.

    Args:
        addresses: Where they are; at least one.
        retry: How often a transient error is tried again.
    """

    def __init__(self, addresses: Sequence[Address], retry: Retry) -> None:
        self.addresses = tuple(addresses)
        self.retry = retry
        self.endpoints = Endpoints(len(self.addresses))

    def ask(
        self,
        call: Callable[[Any, float], Any],
        deadline: Deadline,
        read: Callable[[Any], Any] | None = None,
        model: str = "",
        retry: Retry | None = None,
    ) -> Steps[Any]:
        """The answer of one server.

        Args:
            call: Asks for it, given a transport and a timeout in seconds.
            deadline: Of all attempts together.
            read: Makes of the answer what is wanted, and may fail in any way of one that is not as it should be.
            model: Whose outputs are read; "" for other answers.
            retry: Instead of the cluster's own.

        Raises:
            PinstreamError: What `attempt` and `Reading` raise.
        """

        def once(server: int) -> Steps[Any]:
            answer = yield Ask(server, call, deadline.left())
            if read is None:
                return answer
            with Reading(self.addresses[server], model):
                return read(answer)

        return (yield from self.attempt(once, deadline, retry))

    def any_says(self, call: Callable[[Any, float], bool], deadline: Deadline) -> Steps[bool]:
        """Whether ``call``, given a transport and a timeout in seconds, is true of one of the servers.

        Each is asked once, until one is. One that says no keeps its turn: only requests tell whether it takes them.

        Raises:
            PinstreamError: None could be asked: the last one's reason.
        """
        tried: set[int] = set()
        told, last = False, None
        while len(tried) < len(self.addresses):
            server = self.endpoints.pick(tried)
            tried.add(server)
            try:
                if (yield Ask(server, call, deadline.left())):
                    self.endpoints.answered(server)
                    return True
                told = True
            except PinstreamError as error:
                gone = error.transient or isinstance(error, DeadlineExceeded)
                (self.endpoints.failed if gone else self.endpoints.answered)(server)
                last = error
        if last is not None and not told:
            raise last
        return False

    def attempt(
        self, once: Callable[[int], Steps[Result]], deadline: Deadline, retry: Retry | None = None
    ) -> Steps[Result]:
        """What ``once`` gives for one of the servers.

        After a transient error, and from a server that does not have the model ready, the servers not yet tried come at
        once, and when all were, the next round after a pause if one of them may be otherwise then. Any other error,
        and the last one, is raised.

        Args:
            once: The procedure with one server, by its index.
            deadline: Of all attempts together.
            retry: Instead of the cluster's own.

        Raises:
            DeadlineExceeded: No answer in time.
            PinstreamError: What the server answered, or the last transient error where no time is left for another.
        """
        policy = retry or self.retry
        pauses, current = policy.pauses(), _Round()
        while True:
            server = self.endpoints.pick(current.tried)
            if deadline.left() <= 0:
                raise deadline_exceeded(self.addresses[server], deadline.seconds)
            try:
                result = yield from once(server)
            except DeadlineExceeded:
                self.endpoints.failed(server)
                raise deadline_exceeded(self.addresses[server], deadline.seconds) from None
            except PinstreamError as error:
                if not (error.transient or isinstance(error, ServerNotReady)):
                    self.endpoints.answered(server)
                    raise
                self.endpoints.failed(server)
                # The server was told to refuse it about now: that is no answer in time, and no other reason.
                if isinstance(error, ServerNotReady) and error.waited and deadline.left() <= TOLD_EARLIER_S:
                    raise deadline_exceeded(self.addresses[server], deadline.seconds) from None
                current.failed(server, error)
                if len(current.tried) == len(self.addresses):
                    pause = next(pauses)
                    if pause >= deadline.left() or not current.repeats(policy):
                        raise
                    current = _Round(current.number + 1)
                    yield Pause(pause)
            else:
                self.endpoints.answered(server)
                return result
