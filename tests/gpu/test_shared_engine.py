"""Instances that share one engine process on the GPU get what an engine of their own would give them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.engines import Engine, find_model_file, open_for_instance
from pinstream.loop import Loop
from pinstream.options import Options
from pinstream.tensors import Array
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.test_engine import FP32


@pytest.fixture
def plans(build: BuildPlan, tmp_path: Path) -> Path:
    return build(onnx_models.classifier(tmp_path / "m.onnx"), batch_sizes=(1, 4, 8))


@pytest.fixture
def instances(plans: Path, cache_dir: Path) -> Iterator[list[Engine]]:
    options = Options(cache_dir=str(cache_dir), share_engine="on", instances=3)
    engines = [open_for_instance(find_model_file(plans, options), options) for _ in range(3)]
    yield engines
    for engine in engines:
        engine.close()


def classify(engine: Engine, pixels: list[Array]) -> list[Array]:
    found = []
    for answer in Loop(engine).run([Request({"pixels": p}, len(p), frozenset({"probabilities"})) for p in pixels]):
        if answer.error:
            raise answer.error
        probabilities = answer.outputs["probabilities"]
        assert isinstance(probabilities, np.ndarray)
        found.append(probabilities.copy())
    return found


def pixels(items: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(items, 3, 8, 8)).astype(np.float32)


def test_random_batches_of_three_instances_at_once(instances: list[Engine], plans: Path, load: OpenPlan) -> None:
    own = load(plans)
    sent = {n: [pixels(1 + (n + i) % 7, 100 * n + i) for i in range(200)] for n in range(3)}
    expected = {n: classify(own, batches) for n, batches in sent.items()}
    found: dict[int, list[Array]] = {}

    def work(number: int) -> None:
        found[number] = [
            answer for i in range(0, 200, 5) for answer in classify(instances[number], sent[number][i : i + 5])
        ]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in expected.items():
        for one, other in zip(answers, found[number], strict=True):
            # In batches of other sizes, so by other kernels. Another's answer is off by some tenths.
            np.testing.assert_allclose(other, one, atol=FP32)


def test_the_engine_is_the_same_as_one_of_ones_own(instances: list[Engine], plans: Path, load: OpenPlan) -> None:
    own = load(plans)
    assert instances[0].spec.inputs == own.spec.inputs
    assert instances[0].spec.outputs == own.spec.outputs
