"""A plain model on a real Triton, whose inputs some other process leaves in shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pinstream.tensors import Array, TensorSpec
from tests import onnx_models
from tests.gpu.serving import parameters
from tests.places import free, held_with, places
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running
from tests.server.test_leftovers import wait_until
from tests.server.test_plain_models import configuration, infer, pixels, together
from yolox_steps.places import Places

# As a model has it that is a process by itself, and as several have it that share one, each with two batches under way.
MODELS = {
    "own": parameters(BY_REFERENCE="pixels"),
    "shared": parameters(BY_REFERENCE="pixels", SHARE_ENGINE="on", EXECUTIONS="2"),
}
PIXELS = TensorSpec("pixels", "FP32", (3, 8, 8))
EACH = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("referring")
    for name, config in MODELS.items():
        count = "instance_group [ { count: 2 } ]\n"
        onnx_models.classifier(add_model(repository, name, ONE_LINE + "max_batch_size: 8\n" + count + config))
    with running(repositories=[repository]) as started:
        yield started


@pytest.fixture
def made() -> Iterator[Places]:
    with places(tensor=PIXELS) as region:
        yield region


def classified(server: Running, model: str, **inputs: Array) -> Array:
    return np.asarray(infer(server, model, **inputs).as_numpy("probabilities"))  # type: ignore[arg-type]


def is_free(made: Places) -> bool:
    return all(free(made))


@EACH
def test_its_configuration_has_both(server: Running, model: str) -> None:
    config = configuration(server, model)
    assert {(tensor.name, tuple(tensor.dims), tensor.optional) for tensor in config.input} == {
        ("pixels", (3, 8, 8), True),
        ("pixels_at", (-1,), True),
    }


@EACH
@pytest.mark.parametrize("items", [1, 8])
def test_what_another_process_left_is_computed_and_free_again(
    server: Running, made: Places, model: str, items: int
) -> None:
    data = pixels(items, seed=items)
    expected = classified(server, model, pixels=data)
    for _ in range(20):
        held = held_with(made, data)
        np.testing.assert_array_equal(classified(server, model, pixels_at=held.references), expected)
        wait_until(lambda: is_free(made), 5)
    by_value = data.reshape(items, -1).view(np.uint8)
    np.testing.assert_array_equal(classified(server, model, pixels_at=by_value), expected)


@EACH
def test_regions_that_come_go_and_grow_under_load(server: Running, model: str) -> None:
    """Several who fill, each a region after the other, which grows."""

    def work(number: int) -> None:
        for turn in range(4):
            with places(tensor=PIXELS) as made:
                for i in range(10):
                    data = pixels(1 + (i + number) % 8, seed=100 * number + 10 * turn + i)
                    expected = classified(server, model, pixels=data)
                    for held in [held_with(made, data) for _ in range(3)]:
                        got = classified(server, model, pixels_at=held.references)
                        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
                wait_until(partial(is_free, made), 5)

    assert together([partial(work, number) for number in range(4)]) == [None] * 4


@EACH
def test_a_reference_sent_to_many_at_once_is_answered_once(server: Running, made: Places, model: str) -> None:
    data = pixels(2)
    expected = classified(server, model, pixels=data)
    for _ in range(20):
        held = held_with(made, data)
        outcomes = together([partial(classified, server, model, pixels_at=held.references)] * 6)
        answers = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
        assert len(answers) == 1
        np.testing.assert_array_equal(answers[0], expected)
        refusals = [outcome for outcome in outcomes if isinstance(outcome, InferenceServerException)]
        assert {refusal.status() for refusal in refusals} == {"StatusCode.UNAVAILABLE"}
        assert len(refusals) == 5
        wait_until(lambda: is_free(made), 5)
