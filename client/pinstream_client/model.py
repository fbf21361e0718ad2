"""A client for any model, in threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from .address import Protocol
from .connecting import connecting, require_positive
from .errors import PinstreamError
from .model_steps import ModelSteps
from .options import MAX_ANSWER_BYTES, TLS, Compression, Headers, Token
from .retry import RETRY, Retry
from .session import Session
from .tensors import TensorSpec
from .transport import Deadline, Parameter


class Model:
    """Any model of a Triton server, called like a function. One object serves any number of threads.

    The model's metadata is read once, at the first call; what is sent is held against it before.

    Example:
        >>> with Model("localhost:8001", "classifier") as model:
        ...     print(model.inputs)
        ...     probabilities = model(pixels=array)["probabilities"]

    Args:
        url: As for `Detector`.
        name: Of the model.
        version: Of the model; the server's choice when None.
        protocol: As for `Detector`.
        timeout: Seconds that a call may take with all its retries.
        tls: As for `Detector`.
        headers: As for `Detector`.
        token: As for `Detector`.
        compression: As for `Detector`.
        retry: As for `Detector`.
        max_answer_bytes: As for `Detector`.

    Raises:
        InvalidURL: A URL or a TLS file cannot be read. Nothing is sent before the first call.
        ValueError: An option that is out of range.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        name: str,
        version: str | int | None = None,
        protocol: Protocol | None = None,
        timeout: float = 10.0,
        *,
        tls: TLS | bool = False,
        headers: Headers | None = None,
        token: Token | None = None,
        compression: Compression | None = None,
        retry: Retry = RETRY,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        require_positive(timeout)
        cluster, options = connecting(
            url,
            protocol,
            tls=tls,
            headers=headers,
            token=token,
            compression=compression,
            retry=retry,
            max_answer_bytes=max_answer_bytes,
        )
        self.name = name
        self.timeout = timeout
        self._steps = ModelSteps(cluster, name, "" if version is None else str(version))
        self._session = Session(cluster, options, "Model")

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.name} at {' '.join(map(str, self._steps.cluster.addresses))}>"

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name.

        Raises:
            PinstreamError: As for `infer`.
        """
        self._session.require_open()
        return self._session.run(self._steps.signature(Deadline(self.timeout))).inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name.

        Raises:
            PinstreamError: As for `infer`.
        """
        self._session.require_open()
        return self._session.run(self._steps.signature(Deadline(self.timeout))).outputs

    def __call__(self, **inputs: Any) -> dict[str, NDArray[Any]]:
        """`infer` with the inputs as keyword arguments."""
        return self.infer(inputs)

    def infer(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Runs the model.

        Args:
            inputs: By name: an array of the input's own type and shape, the batch included; or numbers, text, bytes or
                lists of these, which are converted.
            outputs: Names of the wanted outputs; all when empty.
            parameters: Request parameters for the model.

        Returns:
            The outputs by name.

        Raises:
            InvalidRequest: An input or output does not fit the model, or the model refused the request.
            ModelNotFound: The server has no such model.
            ServerUnreachable, ServerNotReady, DeadlineExceeded, ServerError: See `errors`.
        """
        self._session.require_open()
        return self._session.run(self._steps.infer(inputs, outputs, parameters, self.timeout))

    def is_ready(self) -> bool:
        """Whether the model takes requests now. Never raises; takes at most the timeout."""
        try:
            self._session.require_open()
            self._session.run(self._steps.check_ready(Deadline(self.timeout)))
        except PinstreamError:
            return False
        return True

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until the model takes requests.

        Raises:
            PinstreamError: It did not within ``timeout`` seconds.
        """
        self._session.require_open()
        self._session.run(self._steps.wait_ready(timeout, self.timeout))

    def close(self) -> None:
        """Closes the connections. May be called twice."""
        self._session.close()
