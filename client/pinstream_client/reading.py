"""Reading what a server has sent: whoever that is, what was asked for comes of it, or a `PinstreamError`."""

from __future__ import annotations

import struct
from types import TracebackType
from typing import Any

from .errors import PinstreamError, not_triton, unusable

# What Python, its json and NumPy say of data that is not as it should be.
UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
    struct.error,
)


class Reading:
    """For a block that reads an answer, and does nothing else: an error of anybody else's code would be hidden here.

    Args:
        address: Where the answer is from.
        model: Whose outputs are read; "" where it is whether Triton answers that is in question.

    Raises:
        ServerUnreachable, ServerError: The block failed with anything but a `PinstreamError`.
    """

    def __init__(self, address: object, model: str = "") -> None:
        self._address = address
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, UNREADABLE) or isinstance(error, PinstreamError):
            return
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise (
            unusable(self._address, self._model, reason) if self._model else not_triton(self._address, reason)
        ) from None


def text(value: Any) -> str:
    """A value out of an answer that has to be text.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where there should be text")
    return value
