"""The short form of the chaos: every fault once, under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import FAULTS, inflict
from tests.chaos_scene import Scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("chaos")) as started:
        yield started
    assert started.faults == []
    assert started.answers["right"] > 100


@pytest.mark.parametrize("fault", FAULTS)
def test_all_is_served_again_after(scene: Scene, fault: str) -> None:
    inflict(scene, fault)
    assert scene.faults == []
