"""TensorRT-RTX for the tests: it builds plans on any x86-64 Linux machine, without a GPU, and its wheels are small."""

import os

import pytest

from pinstream.engines.flavour import Flavour, load_flavour
from pinstream.errors import ModelFileError


def installed_rtx() -> Flavour:
    """TensorRT-RTX; skips the calling test where it is not installed, or fails it where it has to be."""
    try:
        return load_flavour("tensorrt_rtx")
    except ModelFileError as error:
        lacking = pytest.fail if os.environ.get("PINSTREAM_REQUIRE_RTX") else pytest.skip
        lacking(f"needs TensorRT-RTX, pinstream's extra `rtx`: {error}")
