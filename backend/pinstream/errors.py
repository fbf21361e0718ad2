"""What can go wrong, by who has to act on it."""

from __future__ import annotations

import logging
import re
import traceback

LOGGER = logging.getLogger("pinstream")

# File, line and signature of a function of ONNX Runtime's, some hundred characters which tell a user nothing.
_ONNX_RUNTIME_SOURCE = re.compile(r"/onnxruntime_src/\S+:\d+ .+?\) ")


class PinstreamError(Exception):
    """Base of everything pinstream raises on purpose; its text is meant for people."""


class ConfigError(PinstreamError):
    """The model configuration and the engine disagree, or a parameter is wrong: the operator has to act."""


class ModelFileError(PinstreamError):
    """The model file is missing, empty, damaged or of another kind: the operator has to act."""


class InvalidRequest(PinstreamError):
    """One request is wrong: its sender has to act, and nobody else may notice."""


class NoLongerThere(PinstreamError):
    """What one request refers to is not there any more: sent again, it may be answered."""

    def __init__(self) -> None:
        super().__init__(
            "what the request refers to in shared memory is not there any more: it is read once, and was read before "
            "or has waited for too long; send the request again, and no reference twice"
        )


class EngineError(PinstreamError):
    """A batch failed in the engine: its requests are answered with this, later batches go on."""


def let_go(error: BaseException | None) -> None:
    """Let the calls that an error went through drop their objects, which its traceback keeps as long as it is there."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def first_line(error: Exception) -> str:
    """What a library's exception says, in one line of at most 1,000 characters, or its type where it says nothing.

    Where in ONNX Runtime's source it was raised is left out.
    """
    text = str(error).strip() or type(error).__name__
    return _ONNX_RUNTIME_SOURCE.sub("", text.splitlines()[0])[:1000]


def as_engine_error(error: Exception) -> EngineError:
    """What fails a batch, of whatever an engine raised: what nobody foresaw goes to the log, and fails no neighbour."""
    if isinstance(error, EngineError):
        return error
    LOGGER.error("an engine failed in a way that nobody foresaw", exc_info=error)
    return EngineError(f"internal error ({type(error).__name__}); see the server's log")
