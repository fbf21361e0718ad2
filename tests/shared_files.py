"""Where the tests find model and image files that are too large, or not ours, to be kept in the repository.

They lie in the directory that PINSTREAM_TEST_MODELS names (models and images in one place), else in `models` and
`images` of a directory `shared` beside the checkout. Tests that need them are skipped where they are not there.
"""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def shared_model(name: str = "yolox_nano.onnx") -> Path:
    """A model file; skips the calling test if it is absent."""
    return _find(name, "models")


def shared_image(name: str = "dog.jpg") -> Path:
    """An image file; skips the calling test if it is absent."""
    return _find(name, "images")


def _find(name: str, kind: str) -> Path:
    given = os.environ.get("PINSTREAM_TEST_MODELS")
    directory = Path(given) if given else _BESIDE / kind
    path = directory / name
    if not path.is_file():
        pytest.skip(f"needs {name}: name its directory with PINSTREAM_TEST_MODELS, or see CONTRIBUTING.md")
    return path
