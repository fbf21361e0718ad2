"""Memory of others that the GPU reads by itself: Triton's regions above all."""

from __future__ import annotations

import os
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
    ((address, nbytes),) = registered.parts(there)
    assert nbytes == there.nbytes
    assert address != address_of(there), "a mapping of our own, since Triton's may go"
    assert np.array_equal(by_the_gpu([(address, nbytes)]), there)
    registered.clear()
    assert registered.parts(np.zeros(10, np.uint8)) == []


@pytest.mark.usefixtures("flavour")
def test_a_region_that_has_gone_is_given_back_when_another_comes() -> None:
    from pinstream.engines.registered import RegisteredMemory

    registered = RegisteredMemory()
    with shm_region(SIZE) as first:
        before = mappings(first)
        gone = as_array(first)
        ((address, _),) = registered.parts(gone)
        assert mappings(first) == before + 2
    with shm_region(SIZE) as second:
        there = as_array(second)
        there[:] = 7
        ((now, _),) = parts = registered.parts(there)
        assert np.array_equal(by_the_gpu(parts), there)
        # Of the first one only the test's own is left.
        assert mappings(first) == before + 1 + 2
        if now != address:  # the second one may lie where it was mapped
            with pytest.raises(cuda.CudaError):
                cuda.unregister_host(address)
    assert registered.parts(gone) == []
    registered.clear()


def mappings(path: Path) -> int:
    """How often this process has mapped files of that name, also one that has gone."""
    return Path("/proc/self/maps").read_text().count(str(path))


def by_the_gpu(parts: list[tuple[int, int]]) -> Array:
    """Bytes that the GPU has read, put together."""
    from pinstream.regions import address_of

    size = sum(nbytes for _, nbytes in parts)
    stream, device, back = cuda.Stream(), cuda.DeviceAllocation(size), np.zeros(size, np.uint8)
    target = device.pointer
    for address, nbytes in parts:
        cuda.copy_async("copying in", target, address, nbytes, stream)
        target += nbytes
    stream.synchronize()
    cuda.copy("copying out", address_of(back), device.pointer, size)
    device.free()
    stream.destroy()
    return back


@pytest.mark.usefixtures("flavour")
def test_what_a_region_has_grown_by_is_read_with_what_was_there(region: Path) -> None:
    from pinstream.engines.registered import RegisteredMemory

    registered = RegisteredMemory()
    ((first, _),) = registered.parts(as_array(region)[:10])
    os.truncate(region, 3 * SIZE)
    grown = np.frombuffer(mapped(region, 3 * SIZE), np.uint8)
    grown[:] = np.random.default_rng(1).integers(0, 255, grown.size)
    across = grown[SIZE - 100 : SIZE + 5000]
    parts = registered.parts(across)
    assert parts == [(first + SIZE - 100, 100), (first + SIZE, 5000)]
    assert np.array_equal(by_the_gpu(parts), across)
    # The reason why it is in parts: held here, so that it is seen when CUDA can.
    stream, device = cuda.Stream(), cuda.DeviceAllocation(across.nbytes)
    with pytest.raises(cuda.CudaError, match="InvalidValue"):
        cuda.copy_async("copying at once", device.pointer, parts[0][0], across.nbytes, stream)
    device.free()
    stream.destroy()
    registered.clear()


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
