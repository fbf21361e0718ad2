"""Runs the client's procedures in the caller's thread."""

from __future__ import annotations

import time
from typing import Any

from .cancellation import Cancellation
from .cluster import Cluster
from .errors import PinstreamError, cancelled
from .forking import renew_after_fork
from .options import Options
from .steps import Ask, Pause, Result, Step, Steps
from .transport import connect


class Session:
    """The connections of a client, for any number of threads and for children that it is forked into.

    Args:
        cluster: The servers.
        options: How to connect. Nothing is sent before the first call.
        owner: What the user calls it, for the error of a closed one.
    """

    def __init__(self, cluster: Cluster, options: Options, owner: str) -> None:
        self.cluster = cluster
        self._options = options
        self._owner = owner
        self._closed = False
        self._open()
        renew_after_fork(self)

    def run(self, steps: Steps[Result], cancellation: Cancellation | None = None) -> Result:
        """Runs a procedure to its end.

        Args:
            steps: The procedure.
            cancellation: Ends its pauses early. What is on its way has it in its request.

        Raises:
            PinstreamError: What the procedure raises.
            Cancelled: It was cancelled between two attempts.
        """
        send, value = steps.send, None
        while True:
            try:
                step = send(value)
            except StopIteration as end:
                result: Result = end.value
                return result
            finally:
                value = None  # an error that is still held by the frame it was raised in lives on
            try:
                send, value = steps.send, self._do(step, cancellation)
            except BaseException as error:
                send, value = steps.throw, error

    def require_open(self) -> None:
        """Raises PinstreamError if it is closed."""
        if self._closed:
            raise PinstreamError(f"this {self._owner} is closed: open a new one")

    def close(self, farewell: Steps[None] | None = None) -> None:
        """Runs a last procedure, and closes the connections. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if farewell is not None:
            self.run(farewell)
        for transport in self._transports:
            transport.close()

    def after_fork(self) -> None:
        """The child connects for itself; the connections that it inherited are its parent's."""
        for transport in self._transports:
            transport.abandon()
        self._open()

    def _open(self) -> None:
        self._transports = [connect(address, self._options) for address in self.cluster.addresses]

    def _do(self, step: Step, cancellation: Cancellation | None) -> Any:
        if isinstance(step, Ask):
            if cancellation is not None and cancellation.cancelled:
                raise cancelled(self.cluster.addresses[step.server])
            return step.call(self._transports[step.server], step.timeout)
        if isinstance(step, Pause):
            if cancellation is None:
                time.sleep(step.seconds)
            else:
                cancellation.wait(step.seconds)
            return None
        return step.call()
