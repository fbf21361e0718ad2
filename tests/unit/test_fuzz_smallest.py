"""The fuzzer's inputs by hypothesis, which looks for the smallest one that fails and tries it first the next time."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS
from yolox_steps.decode import mute_decoders

# Of a plan's body TensorRT's own reader may end the process: `make fuzz` has processes for that.
SAFE = [name for name in TARGETS if name != "plan_body"]
# Of each target. PINSTREAM_EXAMPLES=20000 makes it a long form, of a quarter of an hour.
EXAMPLES = int(os.environ.get("PINSTREAM_EXAMPLES", "200"))
chances = st.randoms(use_true_random=False)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    mute_decoders()


@pytest.mark.parametrize("name", SAFE)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=chances)
def test_whatever_comes_is_answered_or_refused_in_words(name: str, chance: random.Random) -> None:
    target, _ = TARGETS[name]
    assert target(chance)


def test_a_fault_is_made_small() -> None:
    whole = bytes(range(60))
    smallest = find(chances.map(lambda chance: mutated((whole,), chance)), lambda data: 59 not in data)
    assert smallest == b""
