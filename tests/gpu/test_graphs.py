"""Capturing on a real GPU: where it fails only the graphs are missing, and other threads do not disturb it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.loop import Loop
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.test_engine import FP32, pixels, reference

During = Callable[[Callable[[], None]], None]


@pytest.fixture
def classifier(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx"), batch_sizes=(1, 4))


@pytest.fixture
def during_capture(flavour: Any, monkeypatch: pytest.MonkeyPatch) -> During:
    """Lets something be done in the middle of every capture, after TensorRT has enqueued its work."""
    from cuda.bindings import runtime

    from pinstream.engines.trt_context import ProfileContext

    enqueue = ProfileContext.enqueue

    def let(happen: Callable[[], None]) -> None:
        def enqueue_and_more(context: Any, slot: Any, stream: Any) -> None:
            enqueue(context, slot, stream)
            _, status, *_ = runtime.cudaStreamIsCapturing(stream.handle)
            if status == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive:
                happen()

        monkeypatch.setattr(ProfileContext, "enqueue", enqueue_and_more)

    return let


def launches_graphs(engine: Any) -> bool:
    """Whether batches of both sizes, each with the right answer, are launched as graphs."""
    items = [pixels(1), pixels(4, 1), pixels(6, 2)]
    answers = Loop(engine).run([Request({"pixels": data}, len(data), frozenset({"probabilities"})) for data in items])
    for data, found in zip(items, answers, strict=True):
        assert found.error is None, found.error
        np.testing.assert_allclose(found.outputs["probabilities"].copy(), reference(data), atol=FP32)
    return all(found.times is not None and found.times.graph for found in answers)


def test_a_capture_that_fails_is_said_once_and_costs_only_the_graphs(
    load: OpenPlan, classifier: Path, during_capture: During, caplog: pytest.LogCaptureFixture
) -> None:
    from pinstream import cuda

    tried: list[int] = []

    def allocate() -> None:  # which no thread may in its own capture
        tried.append(1)
        cuda.DeviceAllocation(1 << 20)

    during_capture(allocate)
    engine: Any = load(classifier)
    assert tried == [1]
    said = [record.getMessage() for record in caplog.records if "no CUDA graphs" in record.getMessage()]
    assert len(said) == 1, said
    assert said[0].startswith(
        "no CUDA graphs: CUDA failed while allocating 1,048,576 bytes on the GPU: cudaErrorStream"
    )
    assert engine.captured == 0
    assert not launches_graphs(engine)
    assert engine.failure == "", "a capture that failed is no lost context"


def test_another_thread_may_allocate_while_one_captures(
    load: OpenPlan, classifier: Path, during_capture: During
) -> None:
    from pinstream import cuda

    made: list[Any] = []

    def allocate() -> None:
        cuda.set_device(0)
        made.append(cuda.DeviceAllocation(1 << 20))

    with ThreadPoolExecutor(1) as other:
        during_capture(lambda: other.submit(allocate).result())
        engine: Any = load(classifier)
    assert engine.captured == len(made) == 2 * len(engine.slots)
    assert launches_graphs(engine)
    for memory in made:
        memory.free()
