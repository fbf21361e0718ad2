"""Arrays that NumPy cannot hand over by itself, on the GPU or of BF16, taken from and given to others by DLPack.

Only addresses change hands; no CUDA is called here.

The structures are those of dlpack.h, version 0.x (https://dmlc.github.io/dlpack/latest/c_api.html), which Triton's
Python stub speaks.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pinstream.tensors import Array

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
# DLDataTypeCode
INT, UINT, FLOAT, BFLOAT, BOOL = 0, 1, 2, 4, 6
CODES = {"i": INT, "u": UINT, "f": FLOAT, "b": BOOL}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _DELETER))

_NAME = b"dltensor"
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in GPU memory: an address, not an owner.

    Attributes:
        pointer: Address of the first element.
        shape: Dimensions.
        dtype: Element type; BF16 travels as uint16.
        device: GPU index.
        owner: Whatever has to live as long as the memory is used.
        to_host: Copies such an array to host memory.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: Any = None
    to_host: Callable[[DeviceArray], Array] | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> DeviceArray:
        """The rows `rows` of the first dimension."""
        start, stop, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + start * row, shape=(stop - start, *self.shape[1:]))

    def copy(self) -> Array:
        """A copy in host memory, which lasts."""
        if self.to_host is None:
            raise TypeError("this array on the GPU can only be read there")
        return self.to_host(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, stream: int | None = None) -> Any:
        """A capsule of this array; the work that fills it must be done."""
        return _Export(self, self.pointer, self.__dlpack_device__(), CODES[self.dtype.kind]).capsule()


class Bfloat16:
    """An array whose elements are the bits of BF16, for Triton to take as such; NumPy has no such type.

    Args:
        bits: UINT16, C-contiguous.
    """

    def __init__(self, bits: Array | DeviceArray) -> None:
        self._bits = bits

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._bits.__dlpack_device__() if isinstance(self._bits, DeviceArray) else (CPU, 0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        """A capsule of this array; the work that fills it must be done."""
        bits = self._bits
        pointer = bits.pointer if isinstance(bits, DeviceArray) else bits.ctypes.data
        return _Export(bits, pointer, self.__dlpack_device__(), BFLOAT).capsule()


def bits_of(producer: Any) -> Array:
    """A copy of an array of BF16 in host memory, as UINT16.

    Args:
        producer: Has __dlpack__.

    Raises:
        ValueError: It is not C-contiguous, or its elements have another size.
    """
    there = from_dlpack(producer, np.dtype(np.uint16))
    return np.frombuffer(ctypes.string_at(there.pointer, there.nbytes), np.uint16).reshape(there.shape)


class _Export:
    """Keeps what a capsule points to alive until its consumer calls the deleter."""

    _alive: dict[int, _Export] = {}  # noqa: RUF012

    def __init__(self, array: Array | DeviceArray, pointer: int, device: tuple[int, int], code: int) -> None:
        self._array = array
        self._shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
        self._deleter = _DELETER(self._delete)
        elements = _DataType(code, array.dtype.itemsize * 8, 1)
        tensor = _Tensor(pointer, _Device(*device), array.ndim, elements, self._shape, None, 0)
        self._managed = _ManagedTensor(tensor, None, self._deleter)

    def capsule(self) -> Any:
        address = ctypes.addressof(self._managed)
        self._alive[address] = self
        return _capsule_new(address, _NAME, None)

    def _delete(self, managed: Any) -> None:
        self._alive.pop(ctypes.addressof(managed.contents), None)


def from_dlpack(producer: Any, dtype: np.dtype[Any]) -> DeviceArray:
    """An array on the GPU as DLPack describes it.

    Args:
        producer: Has __dlpack__; its memory lives as long as it does.
        dtype: The NumPy dtype that holds its elements.

    Raises:
        ValueError: It is not C-contiguous, or its elements have another size.
    """
    capsule = producer.__dlpack__()
    tensor = ctypes.cast(_capsule_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor)).contents.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.dtype.bits != dtype.itemsize * 8:
        raise ValueError(f"DLPack has elements of {tensor.dtype.bits} bits, expected {dtype.itemsize * 8}")
    if tensor.strides and not _contiguous(shape, [tensor.strides[i] for i in range(tensor.ndim)]):
        raise ValueError("the tensor on the GPU is not contiguous")
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    # The capsule itself is kept, unconsumed: its destructor gives the memory back to the producer.
    return DeviceArray(pointer, shape, dtype, int(tensor.device.device_id), owner=(producer, capsule))


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    expected = 1
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dim != 1 and stride != expected:
            return False
        expected *= dim
    return True
