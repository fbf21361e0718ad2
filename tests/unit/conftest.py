"""Fixtures of both sides of inputs by reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pinstream.references import References
from tests.places import TENSOR, places
from yolox_steps.places import Places


@pytest.fixture
def made() -> Iterator[Places]:
    """Places for TENSOR."""
    with places() as region:
        yield region


@pytest.fixture
def readers() -> References:
    """What reads them."""
    return References([TENSOR])
