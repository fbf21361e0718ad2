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
from typing import Any, TypeVar

import numpy as np

from pinstream.tensors import Array

T = TypeVar("T")

# DLDeviceType
CPU, CUDA = 1, 2
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
    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


# Of a capsule that nobody has taken what is in it, and of one that somebody has.
_NAME, _TAKEN = b"dltensor", b"used_dltensor"
# Prototypes of our own: those that are attributes of pythonapi are everybody's.
_of_capsule = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_capsule_pointer = _of_capsule(("PyCapsule_GetPointer", ctypes.pythonapi))
_of_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_capsule_is_valid = _of_name(("PyCapsule_IsValid", ctypes.pythonapi))
_set_capsule_name = _of_name(("PyCapsule_SetName", ctypes.pythonapi))


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
        keep: Makes a copy that lasts beyond the owner's next use of the memory, on the GPU where it can.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: Any = None
    to_host: Callable[[DeviceArray], Array] | None = None
    keep: Callable[[DeviceArray], DeviceArray | Array] | None = None

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

    def lasting(self) -> DeviceArray | Array:
        """A copy which lasts, on the GPU where there is somebody to keep it there."""
        return self.keep(self) if self.keep else self.copy()


def bits_of(producer: Any) -> Array:
    """An array of BF16 in host memory as UINT16: a view, which keeps the memory.

    Args:
        producer: Has __dlpack__.

    Raises:
        ValueError: It is not C-contiguous, or its elements have another size.
    """
    there = from_dlpack(producer, np.dtype(np.uint16))
    return _array_at(there.pointer, there.shape, there.dtype, owner=there)


def handed_over(array: Array | DeviceArray, take: Callable[[Any], T], *, bfloat16: bool = False) -> T:
    """What Triton makes of an array, whose memory is kept for as long as Triton has it.

    Args:
        array: C-contiguous; the work that fills it must be done.
        take: A from_dlpack that takes a capsule.
        bfloat16: The elements are UINT16, the bits of BF16, which NumPy does not have.
    """
    capsule = _capsule_of(array, BFLOAT if bfloat16 else CODES[array.dtype.kind])
    try:
        return take(capsule)
    finally:
        # Triton marks what it has taken with a name of its own. NumPy, whose capsule it is, knows that of the standard
        # only: its complaint of another one, as the capsule ends, crashes the process.
        if not _capsule_is_valid(capsule, _NAME):
            _set_capsule_name(capsule, _TAKEN)


class _Memory:
    """What NumPy makes an array of, which keeps it, without looking at what is there."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> None:
        self._owner = owner
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "shape": shape, "typestr": dtype.str}


def _array_at(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Array:
    # Nowhere lie arrays without elements, which there is nothing to keep for.
    return np.asarray(_Memory(pointer, shape, dtype, owner)) if pointer else np.empty(shape, dtype)


def _capsule_of(array: Array | DeviceArray, code: int) -> Any:
    """NumPy's capsule of memory that it takes for whole numbers of the host's, with what is true of it in their place.

    Whoever takes the array lets go of it by NumPy's deleter; where nobody does, the capsule's end does.
    """
    pointer, device = (
        (array.pointer, (CUDA, array.device)) if isinstance(array, DeviceArray) else (array.ctypes.data, (CPU, 0))
    )
    bits = np.dtype(f"u{array.dtype.itemsize}")
    capsule = _array_at(pointer, array.shape, bits, owner=array).__dlpack__()
    tensor = _tensor_in(capsule)
    tensor.data = pointer
    tensor.device.device_type, tensor.device.device_id = device
    tensor.dtype.code = code
    return capsule


def _tensor_in(capsule: Any) -> _Tensor:
    """The structure itself, which lives as long as the capsule."""
    managed = ctypes.cast(_capsule_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor))
    tensor: _Tensor = managed.contents.tensor
    return tensor


def from_dlpack(producer: Any, dtype: np.dtype[Any]) -> DeviceArray:
    """An array on the GPU as DLPack describes it.

    Args:
        producer: Has __dlpack__; its memory lives as long as it does.
        dtype: The NumPy dtype that holds its elements.

    Raises:
        ValueError: It is not C-contiguous, or its elements have another size.
    """
    capsule = producer.__dlpack__()
    tensor = _tensor_in(capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.dtype.bits != dtype.itemsize * 8:
        raise ValueError(f"DLPack has elements of {tensor.dtype.bits} bits, expected {dtype.itemsize * 8}")
    if tensor.strides and not _contiguous(shape, [tensor.strides[i] for i in range(tensor.ndim)]):
        raise ValueError("the tensor on the GPU is not contiguous")
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    # The capsule itself is kept, unconsumed: its destructor gives the memory back to the producer.
    return DeviceArray(pointer, shape, dtype, int(tensor.device.device_id), owner=(producer, capsule))


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    if 0 in shape:  # and whatever strides there are lead nowhere
        return True
    expected = 1
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dim != 1 and stride != expected:
            return False
        expected *= dim
    return True
