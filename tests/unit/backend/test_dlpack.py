"""DLPack both ways. NumPy stands at the other end: what is exchanged is an address, wherever the memory is."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pinstream import dlpack
from pinstream.dlpack import DeviceArray, bits_of, from_dlpack, handed_over
from pinstream.tensors import Array


def test_an_array_is_read_as_its_address_and_shape() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    read = from_dlpack(array, array.dtype)
    assert read.pointer == array.ctypes.data
    assert read.shape == (2, 3, 4)
    assert read.nbytes == array.nbytes


def test_rows_start_where_they_lie() -> None:
    array = np.arange(24, dtype=np.int64).reshape(4, 6)
    rows = from_dlpack(array, array.dtype)[1:3]
    assert rows.pointer == array[1:].ctypes.data
    assert rows.shape == (2, 6)


def test_a_view_of_a_larger_array_is_refused() -> None:
    array = np.zeros((4, 6), np.float32)[:, :3]
    with pytest.raises(ValueError, match="not contiguous"):
        from_dlpack(array, array.dtype)


def test_elements_of_another_size_are_refused() -> None:
    array = np.zeros(3, np.float64)
    with pytest.raises(ValueError, match="64 bits, expected 32"):
        from_dlpack(array, np.dtype(np.float32))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is let go of is gone by itself: where requests wait, the collector of cycles comes late or never."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What says that its memory is the GPU's says the host's, so that NumPy takes it."""
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)


class Owner:
    """Of memory; can be asked whether it is still there."""


class Given:
    """A capsule in the form that NumPy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


def take(capsule: Any) -> Array:
    return np.from_dlpack(Given(capsule))


def take_as_triton_does(capsule: Any) -> Array:
    taken = take(capsule)
    dlpack._set_capsule_name(capsule, TRITONS)
    return taken


# Capsules keep the address of their name, not the name.
TRITONS = b"used_dlpack"


def owned(memory: Array) -> tuple[DeviceArray, weakref.ref[Owner]]:
    owner = Owner()
    return DeviceArray(memory.ctypes.data, memory.shape, memory.dtype, 0, owner=owner), weakref.ref(owner)


@pytest.mark.parametrize("taken_by", [take, take_as_triton_does])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
@pytest.mark.usefixtures("no_collector", "on_the_host")
def test_what_is_handed_out_is_the_same_memory_and_is_let_go(dtype: Any, taken_by: Any) -> None:
    memory = np.arange(6).astype(dtype).reshape(2, 3)
    ours, owner = owned(memory)
    theirs = handed_over(ours, taken_by)
    del ours
    assert theirs.dtype == memory.dtype
    np.testing.assert_array_equal(theirs, memory)
    assert theirs.ctypes.data == memory.ctypes.data
    assert owner() is not None
    del theirs
    assert owner() is None


@pytest.mark.parametrize("bfloat16", [True, False], ids=["of BF16, which NumPy has not", "of the GPU's memory"])
@pytest.mark.usefixtures("no_collector")
def test_what_is_refused_is_let_go(bfloat16: bool) -> None:
    ours, owner = owned(np.arange(6, dtype=np.uint16))
    with pytest.raises((RuntimeError, BufferError), match="Unsupported d") as refused:
        handed_over(ours, take, bfloat16=bfloat16)
    del ours, refused
    assert owner() is None


@pytest.mark.usefixtures("no_collector")
def test_what_nobody_takes_is_let_go() -> None:
    ours, owner = owned(np.arange(6))
    handed_over(ours, lambda capsule: None)
    del ours
    assert owner() is None


@pytest.mark.parametrize("pointer", [0, 8], ids=["nowhere", "not the host's"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4)])
def test_nothing_is_read_there_and_everything_is_said(pointer: int, shape: tuple[int, ...]) -> None:
    def read(capsule: Any) -> tuple[Any, ...]:
        tensor = dlpack._tensor_in(capsule)
        found = tuple(tensor.shape[i] for i in range(tensor.ndim))
        device = tensor.device.device_type, tensor.device.device_id
        return tensor.data or 0, found, device, tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes

    floats = DeviceArray(pointer, shape, np.dtype(np.float32), 3)
    assert handed_over(floats, read) == (pointer, shape, (2, 3), dlpack.FLOAT, 32, 1)
    truths = DeviceArray(pointer, shape, np.dtype(np.bool_), 0)
    assert handed_over(truths, read) == (pointer, shape, (2, 0), dlpack.BOOL, 8, 1)
    bits = DeviceArray(pointer, shape, np.dtype(np.uint16), 1)
    assert handed_over(bits, read, bfloat16=True) == (pointer, shape, (2, 1), dlpack.BFLOAT, 16, 1)


class Lent:
    """A tensor that can be asked whether it is still there."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self) -> Any:
        return self._array.__dlpack__()


@pytest.mark.usefixtures("no_collector")
def test_bits_are_a_view_of_the_tensor_which_lives_as_long() -> None:
    memory = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = Lent(memory)
    there, references = weakref.ref(tensor), sys.getrefcount(memory)
    bits = bits_of(tensor)[1:]
    del tensor
    np.testing.assert_array_equal(bits, memory.view(np.uint16)[1:])
    assert bits.ctypes.data == memory[1:].ctypes.data
    assert there() is not None
    assert sys.getrefcount(memory) == references + 1, "the capsule is not there any more"
    del bits
    assert there() is None
    assert sys.getrefcount(memory) == references - 1


def test_bits_of_nothing_are_nothing() -> None:
    assert bits_of(np.empty((0, 3), np.float16)).shape == (0, 3)
