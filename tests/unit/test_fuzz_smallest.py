"""The fuzzer's inputs by hypothesis, which looks for the smallest one that fails."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from tests.fuzz import configs, targets
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

# Of a plan's body TensorRT's own reader may end the process: `make fuzz` has processes for that. None of 20,000 inputs
# of each of the others did.
SAFE = [name for name in TARGETS if name != "plan_body"]
# Of each target the same ones each time. PINSTREAM_EXAMPLES=20000 tries others, for some minutes.
EXAMPLES = int(os.environ.get("PINSTREAM_EXAMPLES", "200"))
chances = st.randoms(use_true_random=False)


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the targets keep what they write: it goes with the tests' other files."""
    made = (targets._directory, targets._engines, targets._onnx_files, configs._repository)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("fuzz")))
        yield
    for each in made:
        each.cache_clear()


@pytest.mark.parametrize("name", SAFE)
@settings(
    max_examples=EXAMPLES,
    derandomize="PINSTREAM_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(chance=chances)
def test_whatever_comes_is_answered_or_refused_in_words(name: str, chance: random.Random) -> None:
    target, _ = TARGETS[name]
    assert target(chance)


def test_a_fault_is_made_small() -> None:
    whole = bytes(range(60))
    # The same search each time: one in some hundreds of others ends with a larger one.
    same = settings(derandomize=True, database=None)
    smallest = find(chances.map(lambda chance: mutated((whole,), chance)), lambda data: 59 not in data, settings=same)
    assert smallest == b""
