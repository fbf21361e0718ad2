"""Memory of others that the GPU reads by itself: Triton's regions above all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pinstream.tensors import Array
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.test_engine import answer, pixels
from tests.shm_region import mapped, shm_region

cuda = pytest.importorskip("pinstream.cuda")
SIZE = 1 << 20


@pytest.fixture
def region() -> Iterator[Path]:
    with shm_region(SIZE) as path:
        yield path


def as_array(path: Path) -> Array:
    return np.frombuffer(mapped(path, SIZE), np.uint8)


@pytest.mark.usefixtures("flavour")
def test_the_gpu_reads_a_region_where_it_lies(region: Path) -> None:
    from pinstream.engines.registered import RegisteredMemory
    from pinstream.regions import address_of

    registered = RegisteredMemory()
    there = as_array(region)[333 : 333 + 5000]
    there[:] = np.random.default_rng(0).integers(0, 255, there.size)
    address = registered.address(there)
    assert address not in (0, address_of(there)), "a mapping of our own, since Triton's may go"
    stream, device, back = cuda.Stream(), cuda.DeviceAllocation(there.size), np.zeros_like(there)
    cuda.copy_async("copying in", device.pointer, address, there.size, stream)
    stream.synchronize()
    cuda.copy("copying out", address_of(back), device.pointer, there.size)
    assert np.array_equal(back, there)
    device.free()
    stream.destroy()
    registered.clear()
    assert registered.address(np.zeros(10, np.uint8)) == 0


@pytest.mark.parametrize("items", [1, 3])
def test_requests_in_a_region_are_answered_as_any_other(
    build: BuildPlan, load: OpenPlan, tmp_path: Path, region: Path, items: int
) -> None:
    engine = load(build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 4)))
    asked = pixels(items, seed=items)
    # Unaligned, as Triton lays tensors out.
    there = as_array(region)[13 : 13 + asked.nbytes].view(np.float32).reshape(asked.shape)
    there[...] = asked
    usual = answer(engine, "probabilities", pixels=asked)["probabilities"].copy()
    assert np.array_equal(answer(engine, "probabilities", pixels=there)["probabilities"], usual)
    # The next request lies in the same place.
    there[...] = pixels(items, seed=items + 100)
    assert not np.array_equal(answer(engine, "probabilities", pixels=there)["probabilities"], usual)
