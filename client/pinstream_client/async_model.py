"""A client for any model, in asyncio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from .address import Protocol
from .async_session import AsyncSession
from .connecting import connecting, require_positive
from .errors import PinstreamError
from .model_steps import ModelSteps
from .options import MAX_ANSWER_BYTES, TLS, Compression, Headers, Token
from .retry import RETRY, Retry
from .tensors import TensorSpec
from .transport import Deadline, Parameter


class AsyncModel:
    """`Model` for asyncio: the same arguments, results and errors.

    Example:
        >>> async with AsyncModel("localhost:8001", "classifier") as model:
        ...     probabilities = (await model(pixels=array))["probabilities"]

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
        InvalidURL: A URL cannot be read. Nothing is sent before the first call.
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
        self._session = AsyncSession(cluster, options, "AsyncModel")

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncModel {self.name} at {' '.join(map(str, self._steps.cluster.addresses))}>"

    async def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name.

        Raises:
            PinstreamError: As for `infer`.
        """
        self._session.require_open()
        return (await self._session.run(self._steps.signature(Deadline(self.timeout)))).inputs

    async def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name.

        Raises:
            PinstreamError: As for `infer`.
        """
        self._session.require_open()
        return (await self._session.run(self._steps.signature(Deadline(self.timeout)))).outputs

    async def __call__(self, **inputs: Any) -> dict[str, NDArray[Any]]:
        """`infer` with the inputs as keyword arguments."""
        return await self.infer(inputs)

    async def infer(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Runs the model; see `Model.infer`."""
        self._session.require_open()
        return await self._session.run(self._steps.infer(inputs, outputs, parameters, self.timeout))

    async def is_ready(self) -> bool:
        """Whether the model takes requests now. Never raises; takes at most the timeout."""
        try:
            self._session.require_open()
            await self._session.run(self._steps.check_ready(Deadline(self.timeout)))
        except PinstreamError:
            return False
        return True

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until the model takes requests.

        Raises:
            PinstreamError: It did not within ``timeout`` seconds.
        """
        self._session.require_open()
        await self._session.run(self._steps.wait_ready(timeout, self.timeout))

    async def close(self) -> None:
        """Closes the connections. May be called twice."""
        await self._session.close()
