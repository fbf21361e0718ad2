"""What can go wrong, by who has to act on it."""

import logging

LOGGER = logging.getLogger("pinstream")


class PinstreamError(Exception):
    """Base of everything pinstream raises on purpose; its text is meant for people."""


class ConfigError(PinstreamError):
    """The model configuration and the engine disagree, or a parameter is wrong: the operator has to act."""


class ModelFileError(PinstreamError):
    """The model file is missing, empty, damaged or of another kind: the operator has to act."""


class InvalidRequest(PinstreamError):
    """One request is wrong: its sender has to act, and nobody else may notice."""


class EngineError(PinstreamError):
    """A batch failed in the engine: its requests are answered with this, later batches go on."""


def as_engine_error(error: Exception) -> EngineError:
    """What fails a batch, of whatever an engine raised: what nobody foresaw goes to the log, and fails no neighbour."""
    if isinstance(error, EngineError):
        return error
    LOGGER.error("an engine failed in a way that nobody foresaw", exc_info=error)
    return EngineError(f"internal error ({type(error).__name__}); see the server's log")
