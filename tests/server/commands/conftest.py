"""One server with the built-in model, for all tests of commands: they run on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstream_cli.demo import BUILT_IN_IMAGE, BUILT_IN_LABELS, BUILT_IN_MODEL, built_in
from pinstream_cli.yolox_service import build_service
from tests.server.running import Running, running


@pytest.fixture(scope="session")
def shapes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as `pinstream build` makes it, with a label that would be HTML on a careless page."""
    directory = tmp_path_factory.mktemp("shapes")
    labels = directory / "labels.txt"
    labels.write_text(built_in(BUILT_IN_LABELS).read_text().replace("ball", "<b>ball</b>"))
    build_service(built_in(BUILT_IN_MODEL), directory, labels=labels)
    return directory


@pytest.fixture(scope="session")
def shapes(shapes_model: Path) -> Iterator[Running]:
    """The detection service with the built-in model."""
    with running(shapes_model) as server:
        yield server


@pytest.fixture(scope="session")
def demo_picture() -> Path:
    """The built-in picture, which has one of everything that the model knows."""
    return built_in(BUILT_IN_IMAGE)
