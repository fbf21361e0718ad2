"""What can go wrong, by who has to act on it."""


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
