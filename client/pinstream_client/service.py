"""What can be asked of the detection service, as procedures for `Session` and `AsyncSession`."""

from __future__ import annotations

import time
from typing import Any, Literal, TypeAlias, get_args

from . import yolox
from .cluster import Cluster
from .detections import Detections
from .direct import DirectRoute
from .encoded import EncodedRoute
from .errors import AccessDenied, ModelNotFound, PinstreamError, ServerNotReady, ServerUnreachable
from .labels import COCO
from .options import Options
from .reading import Reading, text
from .retry import NO_RETRY
from .shared_memory import SharedMemory
from .steps import Ask, Pause, Steps, until_ready
from .timing import Statistics, ensemble_models, read_statistics
from .transport import Deadline, Json

Transport: TypeAlias = Literal["encoded", "tensor", "shm", "cuda"]

# These say that no other image will fare better now.
SERVER_IS_GONE = (ServerUnreachable, ServerNotReady, ModelNotFound)


class Service:
    """The detection service of a cluster.

    Args:
        cluster: The servers.
        options: How they are reached.
        model: Name of the ensemble.
        transport: How images travel.
    """

    def __init__(self, cluster: Cluster, options: Options, model: str, transport: Transport) -> None:
        if transport not in get_args(Transport):
            raise ValueError(f"transport is {transport!r}: expected one of {', '.join(get_args(Transport))}")
        self.cluster = cluster
        self.model = model
        self._chosen = transport
        self._route = _route(cluster, options, model, transport)
        self._names: tuple[str, ...] | None = None
        self._models: tuple[str, ...] | None = None

    @property
    def transport(self) -> Transport:
        """How images travel now: "tensor" where shared memory was asked for and every server refused it."""
        works = self._chosen in ("encoded", "tensor") or self._memory is not None
        return self._chosen if works else "tensor"

    def detect(self, request: yolox.DetectRequest, timeout: float) -> Steps[Detections]:
        """The objects in one image."""
        deadline = Deadline(timeout)
        image: Any = yield from self._route.read(request.image)
        try:
            names = self._names
            if names is None:
                names = yield from self.class_names(deadline)
            return (yield from self._route.detect(image, request, names, deadline))
        except SERVER_IS_GONE:
            self._names = self._models = None  # what comes back may be a server with another model
            self._route.forget()
            raise

    def class_names(self, deadline: Deadline) -> Steps[tuple[str, ...]]:
        """The labels, asked for once; COCO's for a service that does not tell them."""
        if self._names is None:
            tells = yield from self.cluster.ask(
                lambda server, left: server.model_metadata(self.model, left),
                deadline,
                lambda metadata: yolox.tells_class_names(self.model, metadata),
            )
            names = COCO
            if tells:
                request = yolox.class_names_request(self.model)
                names = yield from self.cluster.ask(
                    lambda server, left: server.infer(request, left), deadline, yolox.read_class_names, self.model
                )
            self._names = names
        return self._names

    def check_ready(self, deadline: Deadline) -> Steps[None]:
        """Returns when one of the servers takes requests for the model.

        Raises:
            ServerUnreachable, DeadlineExceeded, ServerNotReady, ModelNotFound: None does; the last one's reason.
        """
        if (yield from self.cluster.any_says(lambda server, left: server.model_ready(self.model, left), deadline)):
            return
        # Only now, when something is wrong, does it pay to ask what.
        try:
            index = yield from self.cluster.ask(
                lambda server, left: server.repository_index(left), deadline, _read_index, retry=NO_RETRY
            )
        except AccessDenied:
            yield from self._check_among_served(deadline)
            return
        where = " and ".join(str(address) for address in self.cluster.addresses)
        if self.model not in index:
            known = ", ".join(sorted(index)) or "no model at all"
            raise ModelNotFound(f"the server at {where} has no model '{self.model}': it has {known}")
        state, reason = index[self.model]
        raise ServerNotReady(f"model '{self.model}' at {where} is not ready: {state} ({reason})")

    def _check_among_served(self, deadline: Deadline) -> Steps[None]:
        """Where a server keeps to itself what is in its repository: say what it serves, which it tells everybody.

        Raises:
            ModelNotFound, ServerNotReady: It serves other models, or none yet.
        """
        served = yield from self.cluster.ask(
            lambda server, left: server.statistics(left),
            deadline,
            lambda answer: sorted({str(entry["name"]) for entry in answer.get("model_stats", [])}),
            retry=NO_RETRY,
        )
        where = " and ".join(str(address) for address in self.cluster.addresses)
        if not served:
            raise ServerNotReady(f"the server at {where} serves no model yet")
        if self.model not in served:
            raise ModelNotFound(f"the server at {where} serves no model '{self.model}': it serves {', '.join(served)}")
        raise ServerNotReady(f"model '{self.model}' at {where} is not ready; the server's log says why")

    def wait_ready(self, timeout: float, attempt_timeout: float) -> Steps[None]:
        """Tries `check_ready` until it returns.

        Raises:
            PinstreamError: It did not within ``timeout``: the last reason.
        """
        return until_ready(self.check_ready, timeout, attempt_timeout)

    def statistics(self, deadline: Deadline) -> Steps[Statistics]:
        """The counters of the ensemble and its steps, summed over the servers that answer."""
        if self._models is None:
            self._models = yield from self.cluster.ask(
                lambda server, left: server.model_config(self.model, left),
                deadline,
                lambda config: ensemble_models(self.model, config),
            )
        models: tuple[str, ...] = self._models
        if len(self.cluster.addresses) == 1:
            alone: Statistics = yield from self.cluster.ask(
                lambda server, left: server.statistics(left), deadline, lambda answer: read_statistics(answer, models)
            )
            return alone
        return (yield from self._summed_statistics(models, deadline))

    def _summed_statistics(self, models: tuple[str, ...], deadline: Deadline) -> Steps[Statistics]:
        total, told = read_statistics({}, models), False
        failure: PinstreamError | None = None
        for index, address in enumerate(self.cluster.addresses):
            try:
                answer = yield Ask(index, lambda server, left: server.statistics(left), deadline.left())
                with Reading(address):
                    total, told = total + read_statistics(answer, models), True
            except PinstreamError as error:
                failure = error
        if failure is not None and not told:
            raise failure
        return total

    def timed(self, request: yolox.DetectRequest, timeout: float) -> Steps[Detections]:
        """`detect` between two looks at the server's counters; what other clients send meanwhile is averaged in."""
        deadline = Deadline(timeout)
        yield from self.class_names(deadline)  # a request of its own, which has no place in the time split
        before = yield from self.statistics(deadline)
        found: Detections = yield from self.detect(request, deadline.left())
        timings = (yield from self.statistics(deadline)).since(before)
        # Triton counts a request a moment after it has answered it.
        started = time.monotonic()
        while not any(t.requests for t in timings) and time.monotonic() - started < 0.5:
            yield Pause(0.005)
            timings = (yield from self.statistics(deadline)).since(before)
        return found.with_timings(timings)

    def close(self) -> Steps[None]:
        """Gives back what the servers hold for this client."""
        if isinstance(self._route, DirectRoute):
            yield from self._route.close()

    @property
    def _memory(self) -> SharedMemory | None:
        return self._route.memory if isinstance(self._route, DirectRoute) else None


def _read_index(index: list[Json]) -> dict[str, tuple[str, str]]:
    """Of each model in a repository's index the state and the reason for it; of several versions the last one's."""
    return {
        text(entry["name"]): (entry.get("state") or "not loaded", entry.get("reason") or "no reason given")
        for entry in index
    }


def _route(cluster: Cluster, options: Options, model: str, transport: Transport) -> EncodedRoute | DirectRoute:
    if transport == "encoded":
        return EncodedRoute(cluster, model)
    if transport == "tensor":
        return DirectRoute(cluster, model)
    if transport == "cuda":
        from .cuda_region import CudaRegion

        return DirectRoute(cluster, model, SharedMemory(cluster, options, CudaRegion))
    from .regions import SystemRegion

    return DirectRoute(cluster, model, SharedMemory(cluster, options, SystemRegion))
