"""DLPack both ways. NumPy stands at the other end: what is exchanged is an address, wherever the memory is."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from pinstream import dlpack
from pinstream.dlpack import DeviceArray, from_dlpack


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


class _OnTheHost:
    """A capsule of ours that says its memory is the host's, so that NumPy takes it."""

    def __init__(self, array: DeviceArray, monkeypatch: pytest.MonkeyPatch) -> None:
        self._array = array
        monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
def test_what_is_handed_out_is_the_same_memory_and_is_let_go(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.arange(6).astype(dtype).reshape(2, 3)
    ours = DeviceArray(memory.ctypes.data, memory.shape, memory.dtype, 0, owner=memory)
    before = len(dlpack._Export._alive)
    theirs = np.from_dlpack(_OnTheHost(ours, monkeypatch))
    np.testing.assert_array_equal(theirs, memory)
    assert theirs.ctypes.data == memory.ctypes.data
    assert len(dlpack._Export._alive) == before + 1
    del theirs
    gc.collect()
    assert len(dlpack._Export._alive) == before
