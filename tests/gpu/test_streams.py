"""Which stream each step of a batch goes on, seen by what waits for long work on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinstream.engines import cuda_slot
from pinstream.tensors import Array
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.test_engine import FP32, answer, pixels, reference

MEGABYTE = 1 << 20
WANTED = frozenset({"probabilities"})


@pytest.fixture(scope="module")
def classifier(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnx = onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx")
    return build(onnx, batch_sizes=(1, 2, 4))


class LongWork:
    """Work for a tenth of a second."""

    def __init__(self) -> None:
        from pinstream import cuda

        self._cuda = cuda
        self._memory = cuda.DeviceAllocation(1024 * MEGABYTE)

    def on(self, stream: Any, fills: int = 400) -> None:
        """Begin some; a gigabyte is filled in a third of a millisecond on an H100."""
        for _ in range(fills):
            self._cuda.fill_async(self._memory.pointer, 0, self._memory.nbytes, stream)

    def free(self) -> None:
        self._cuda.synchronize()
        self._memory.free()


@pytest.fixture
def long_work() -> Iterator[LongWork]:
    work = LongWork()
    yield work
    work.free()


def is_busy(stream: Any) -> bool:
    from cuda.bindings import runtime

    return bool(runtime.cudaStreamQuery(stream.handle)[0] == runtime.cudaError_t.cudaErrorNotReady)


def began(slot: Any, data: Array) -> None:
    """Begin a batch and put its input in."""
    slot.begin({"pixels": data.shape})
    slot.put("pixels", data, 0)


def test_a_lone_batch_needs_one_stream(load: OpenPlan, classifier: Path, long_work: LongWork) -> None:
    engine: Any = load(classifier)
    reference(pixels(2))  # its first call takes longer than the work
    for stream in (engine._streams.h2d, engine._streams.d2h):
        long_work.on(stream)
    for seed in range(3):  # each is alone: the one before is done
        got = answer(engine, "probabilities", pixels=pixels(2, seed))["probabilities"]
        np.testing.assert_allclose(got, reference(pixels(2, seed)), atol=FP32)
    assert is_busy(engine._streams.h2d), "the batches waited for the stream of copies in"
    assert is_busy(engine._streams.d2h), "the batches waited for the stream of copies out"


def test_a_second_batch_is_copied_in_while_the_first_is_computed(
    load: OpenPlan, classifier: Path, long_work: LongWork
) -> None:
    engine: Any = load(classifier)
    first, second = engine.slots[:2]
    long_work.on(engine._streams.compute)
    began(first, pixels(4, 1))
    engine.enqueue(first, WANTED)
    began(second, pixels(4, 2))
    engine._streams.h2d.synchronize()
    assert is_busy(engine._streams.compute), "the second batch's copies waited for the first one"
    engine.enqueue(second, WANTED)
    for seed, slot in ((1, first), (2, second)):
        np.testing.assert_allclose(engine.wait(slot)["probabilities"], reference(pixels(4, seed)), atol=FP32)
        assert all(seconds >= 0 for seconds in engine.times(slot).values())


def test_large_outputs_of_a_lone_batch_keep_no_later_one_waiting(
    load: OpenPlan, classifier: Path, long_work: LongWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_slot, "FEW_BYTES", 0)
    engine: Any = load(classifier)
    first, second = engine.slots[:2]
    long_work.on(engine._streams.d2h)
    began(first, pixels(4, 1))
    engine.enqueue(first, WANTED)
    began(second, pixels(4, 2))
    engine.enqueue(second, WANTED)
    engine._streams.compute.synchronize()
    assert is_busy(engine._streams.d2h), "the second batch waited for the first one's outputs"
    for seed, slot in ((1, first), (2, second)):
        np.testing.assert_allclose(engine.wait(slot)["probabilities"], reference(pixels(4, seed)), atol=FP32)


def test_stages_of_a_lone_batch_are_timed(load: OpenPlan, classifier: Path) -> None:
    engine: Any = load(classifier)
    slot = engine.slots[0]
    began(slot, pixels(4))
    engine.enqueue(slot, WANTED)
    engine.wait(slot)
    stages = engine.times(slot)
    assert set(stages) == {"h2d", "compute", "d2h"}
    assert all(0 < seconds < 1 for seconds in stages.values())


@pytest.mark.parametrize("beside_another", [False, True], ids=["lone", "beside-another"])
def test_of_an_abandoned_batch_nothing_is_read_any_more(
    load: OpenPlan, classifier: Path, long_work: LongWork, beside_another: bool
) -> None:
    engine: Any = load(classifier)
    slot, other = engine.slots[:2]
    if beside_another:
        long_work.on(engine._streams.compute)
        began(other, pixels(4, 1))
        engine.enqueue(other, WANTED)
    copies = engine._streams.h2d if beside_another else engine._streams.compute
    # So that the copies of the batch have not begun when it is abandoned.
    long_work.on(copies)
    began(slot, pixels(4))
    was_busy = is_busy(copies)
    engine.abandon(slot)
    assert was_busy
    assert not is_busy(copies)
    if beside_another:
        engine.wait(other)
    got = answer(engine, "probabilities", pixels=pixels(4))["probabilities"]
    np.testing.assert_allclose(got, reference(pixels(4)), atol=FP32)
