"""What can be asked of any model, as procedures for `Session` and `AsyncSession`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cluster import Cluster
from .errors import ModelNotFound, ServerNotReady, ServerUnreachable
from .steps import Steps, until_ready
from .tensors import Signature, optional_inputs, read_signature
from .transport import Deadline, InferRequest, Outputs, Parameter


class ModelSteps:
    """A model of a cluster.

    Args:
        cluster: The servers.
        name: Of the model.
        version: Of the model; "" for the server's choice.
    """

    def __init__(self, cluster: Cluster, name: str, version: str) -> None:
        self.cluster = cluster
        self.name = name
        self.version = version
        self._signature: Signature | None = None
        self._optional: frozenset[str] = frozenset()

    def signature(self, deadline: Deadline) -> Steps[Signature]:
        """What the model takes and gives, asked for once."""
        if self._signature is None:
            signature = yield from self.cluster.ask(
                lambda server, left: server.model_metadata(self.name, left, self.version), deadline, read_signature
            )
            self._optional = yield from self.cluster.ask(
                lambda server, left: server.model_config(self.name, left), deadline, optional_inputs
            )
            self._signature = signature
        return self._signature

    def infer(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter] | None,
        timeout: float,
    ) -> Steps[Outputs]:
        """Runs the model once."""
        deadline = Deadline(timeout)
        try:
            signature = yield from self.signature(deadline)
            signature.require_outputs(self.name, tuple(outputs))
            arrays = signature.arrays(self.name, inputs, self._optional)
            request = InferRequest(self.name, arrays, tuple(outputs), parameters or {}, self.version)
            answer: Outputs = yield from self.cluster.ask(lambda server, left: server.infer(request, left), deadline)
            return answer
        except (ServerUnreachable, ServerNotReady, ModelNotFound):
            self._signature = None  # what comes back under this name may be another model
            raise

    def check_ready(self, deadline: Deadline) -> Steps[None]:
        """Returns when a server takes requests for the model.

        Raises:
            PinstreamError: None does.
        """
        if not (yield from self.cluster.any_says(lambda server, left: server.model_ready(self.name, left), deadline)):
            where = " and ".join(map(str, self.cluster.addresses))
            raise ServerNotReady(f"model '{self.name}' at {where} is not there or not ready")

    def wait_ready(self, timeout: float, attempt_timeout: float) -> Steps[None]:
        """Tries `check_ready` until it returns.

        Raises:
            PinstreamError: It did not within ``timeout``: the last reason.
        """
        return until_ready(self.check_ready, timeout, attempt_timeout)
