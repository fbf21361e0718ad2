"""The errors of `pinstream build`. Apart from the modules that need ONNX, so that any command can catch them."""

from pinstream_cli.errors import CommandError


class BuildError(CommandError):
    """A build that cannot go on: the message says what was found, what was expected and what to do."""


class NotYoloxError(BuildError):
    """The file is a sound ONNX model, but not a YOLOX export as YOLOX's own export tool writes them."""
