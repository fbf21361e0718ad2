"""Keeps Triton's Python stub from copying the inputs of each request. Used by model.py; knows Triton's Python API.

Of each tensor in host memory the stub makes an array for as_numpy, whether or not it is asked for, and its pybind11
copies what belongs to no other array: 1.2 MB for a picture of 640 x 640, which the model then reads where it lies.

NumPy hands its functions out in a table, which pybind11 reads once, when the first array comes along. Here it comes
while another table is in its place, in which an array's copy is the array itself.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pinstream.dlpack import handed_over

# Of NumPy's table: PyArray_NewCopy's place, which is part of its binary interface (numpy/__multiarray_api.h), and how
# many places are taken over: more than pybind11 reads (its numpy.h), and no more than NumPy has.
_NEW_COPY, _FUNCTIONS = 85, 300
_MULTIARRAY = "numpy.core.multiarray" if np.__version__.startswith("1.") else "numpy._core.multiarray"
# Prototypes of our own: those that are attributes of pythonapi are everybody's.
_of_capsule = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_capsule_pointer = _of_capsule(("PyCapsule_GetPointer", ctypes.pythonapi))
_of_pointer = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_new_capsule = _of_pointer(("PyCapsule_New", ctypes.pythonapi))


def leave_out_copies() -> bool:
    """From now on as_numpy of a tensor in host memory is a view, which is valid as long as the tensor is.

    It has to be called before the stub has seen any array.

    Returns:
        Whether it is so. If not, copying costs time and nothing else.
    """
    multiarray: Any = importlib.import_module(_MULTIARRAY)
    table = multiarray._ARRAY_API
    functions = (ctypes.c_void_p * _FUNCTIONS).from_buffer_copy(
        (ctypes.c_void_p * _FUNCTIONS).from_address(_capsule_pointer(table, None))
    )
    # Given an array, and an order that it does not look at, it returns the array.
    functions[_NEW_COPY] = ctypes.cast(ctypes.pythonapi.Py_NewRef, ctypes.c_void_p).value
    multiarray._ARRAY_API = _new_capsule(ctypes.addressof(functions), None, None)
    try:
        left_out = _is_view()
    finally:
        multiarray._ARRAY_API = table
    if not left_out:
        pb_utils.Logger.log_info("[pinstream] this Triton copies the inputs of each request once more than is needed")
    return left_out


def _is_view() -> bool:
    array = np.zeros(1, np.uint8)
    tensor = handed_over(array, partial(pb_utils.Tensor.from_dlpack, "any"))
    return np.shares_memory(tensor.as_numpy(), array)
