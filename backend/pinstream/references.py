"""Inputs that the step before left in shared memory: it sends where they lie, and they are read there.

In an ensemble Triton copies three times what one Python model gives another: out of the one, and into the other, with a
copy of its own in between. Here the model that makes it writes it into a region of /dev/shm, and the tensor that goes
through Triton refers to that. Called by model.py and autocomplete.py; no Triton, no CUDA.

What a region is made of is told in docs/configuration.md, for whoever writes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pinstream import regions
from pinstream.dlpack import DeviceArray
from pinstream.errors import ConfigError, InvalidRequest, NoLongerThere
from pinstream.growing import mapped
from pinstream.tensors import Array, ModelSpec, TensorSpec

Inputs = dict[str, Array | DeviceArray]

DIRECTORY = Path(regions.DIRECTORY)
SUFFIX = "_at"
MAGIC = b"PINSREF1"
# A reference, one for each item: the mark above, the number of the place, bytes of a place, the token that the place
# had when it was filled, and the SHA-256 of the region's name. Not the name: a client can ask the step before for
# references, and what names a region of Triton's may be let in there (docs/security.md).
REFERENCE = struct.Struct("<8sQQ16s32s")
# As Triton's own regions begin, of which clients of newer Tritons can register none.
REGIONS = "triton_python_backend_shm_region_*_places"
# A region: a page with the mark, bytes of a place and a row for each place, and then the places, one behind the other.
HEADER = 4096
ROWS_AT = 64
ROW = np.dtype([("token", "<u8", 2), ("filled", "<f8"), ("reader", "<u8")])
MOST_PLACES = (HEADER - ROWS_AT) // ROW.itemsize
# struct flock, of the whole file where the numbers are 0.
LOCK = struct.Struct("hhqqi4x")
# Seconds after which a place is not read any more. Whoever filled it waits longer before filling it again, so that
# nobody reads meanwhile.
PATIENCE_S = 50.0


def by_reference(names: Sequence[str], spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """The inputs of these names, once it is sure that they can come by reference.

    Raises:
        ConfigError: One of them cannot.
    """
    known = {tensor.name: tensor for tensor in spec.inputs}
    for name in names:
        tensor = known.get(name)
        if tensor is None:
            raise ConfigError(
                f"BY_REFERENCE has '{name}', but the model's inputs are {', '.join(known)}; name one of these, or "
                "leave it out of BY_REFERENCE"
            )
        if spec.batch is None or tensor.dtype == "BYTES" or not tensor.is_static or name + SUFFIX in known:
            raise ConfigError(
                f"BY_REFERENCE has '{name}', and {tensor} of a model with{'' if spec.batch else 'out'} a batch "
                "dimension cannot come so: it takes a model that batches, and an input of fixed dims, no strings, "
                f"beside which there is no '{name}{SUFFIX}'; leave it out of BY_REFERENCE"
            )
        if tensor.item_bytes <= REFERENCE.size:
            raise ConfigError(
                f"BY_REFERENCE has '{name}', whose items have {tensor.item_bytes} bytes, and a reference to one has "
                f"{REFERENCE.size}; leave it out of BY_REFERENCE"
            )
    return tuple(known[name] for name in dict.fromkeys(names))


def referring(tensor: TensorSpec) -> TensorSpec:
    """The input that refers to another: a reference for each item, or the bytes of the item itself."""
    return TensorSpec(tensor.name + SUFFIX, "UINT8", (-1,))


class References:
    """Reads what requests refer to.

    Args:
        inputs: Those that may come by reference.
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = {referring(tensor).name: tensor for tensor in inputs}
        self._regions: dict[bytes, _Region] = {}

    def resolve(self, inputs: Inputs) -> Inputs:
        """The inputs of a request, those that came by reference under their own names.

        They are views of the place, which is free for others when nobody has a view any more.

        Raises:
            InvalidRequest: A reference is none.
            NoLongerThere: It was read before, or has waited for too long.
        """
        for name in self._inputs.keys() & inputs.keys():
            tensor = self._inputs[name]
            if tensor.name in inputs:
                raise InvalidRequest(f"the request has both '{tensor.name}' and '{name}'; send one of them")
            rows = inputs.pop(name)
            if isinstance(rows, DeviceArray):
                raise InvalidRequest(f"input '{name}' holds references and is on the GPU; send it in host memory")
            inputs[tensor.name] = self._read(name, tensor, rows)
        return inputs

    def _read(self, name: str, tensor: TensorSpec, rows: Array) -> Array:
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] not in (REFERENCE.size, tensor.item_bytes):
            raise InvalidRequest(
                f"input '{name}' has shape {list(rows.shape)} of {rows.dtype}; expected uint8 [batch, "
                f"{REFERENCE.size}], references to what lies in shared memory, or the bytes of the items themselves, "
                f"[batch, {tensor.item_bytes}]; send '{tensor.name}' instead"
            )
        shape = (len(rows), *tensor.shape)
        if rows.shape[1] == tensor.item_bytes:
            return np.ascontiguousarray(rows).view(tensor.numpy_dtype).reshape(shape)
        found = _first_reference(rows)
        if found is None or found.nbytes != tensor.item_bytes:
            raise InvalidRequest(
                f"input '{name}' begins with {rows[:1, :24].tobytes()!r}, and holds no references to items of "
                f"{tensor.item_bytes} bytes that lie one behind the other; send '{tensor.name}' itself"
            )
        region = self._region(found.region)
        if region is None or region.item_bytes != tensor.item_bytes:
            raise NoLongerThere()
        return region.take(found.first, found.token, shape, tensor.numpy_dtype)

    def _region(self, named: bytes) -> _Region | None:
        """The region of whose name this is the SHA-256, while it can be found or has been before."""
        region = self._regions.get(named)
        if region is None and (path := _path_of(named)) and (region := _Region.opened(path)):
            self._regions = {other: known for other, known in self._regions.items() if known.is_there()}
            self._regions[named] = region
        return region


def _path_of(named: bytes) -> Path | None:
    paths = DIRECTORY.glob(REGIONS)
    return next((path for path in paths if hashlib.sha256(os.fsencode(path.name)).digest() == named), None)


class _Reference(NamedTuple):
    first: int
    nbytes: int
    token: Array
    region: bytes


def _first_reference(rows: Array) -> _Reference | None:
    """The first of references to places that follow each other; None where it is none, or others follow."""
    if not len(rows):
        return None
    mark, first, nbytes, token, region = REFERENCE.unpack(rows[0].tobytes())
    # One array is one piece of memory.
    if mark != MAGIC or first + len(rows) > MOST_PLACES:
        return None
    expected = (REFERENCE.pack(mark, first + i, nbytes, token, region) for i in range(len(rows)))
    if b"".join(expected) != rows.tobytes():
        return None
    return _Reference(first, nbytes, np.frombuffer(token, "<u8"), region)


class _Region:
    """A region of places, mapped as far as it is known."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        weakref.finalize(self, os.close, fd).atexit = False
        self._map()
        self.item_bytes = int(self._data[8:16].view("<u8")[0])

    @classmethod
    def opened(cls, path: Path) -> _Region | None:
        """The region of this file; None where it is none of this user's."""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(fd)
            if status.st_uid == os.geteuid() and status.st_size > HEADER and os.pread(fd, len(MAGIC), 0) == MAGIC:
                return cls(path, fd)
            os.close(fd)
        return None

    def _map(self) -> None:
        self._data = mapped(self._fd, os.fstat(self._fd).st_size)
        self._address = int(self._data.__array_interface__["data"][0])
        self._rows = self._data[ROWS_AT:HEADER].view(ROW)

    def is_there(self) -> bool:
        """Whether whoever fills it still does."""
        return self._path.exists()

    def take(self, first: int, token: Array, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
        """A view of the items that lie from place number `first` on.

        Raises:
            NoLongerThere: These places have not this token any more.
        """
        end = HEADER + (first + shape[0]) * self.item_bytes
        if end > len(self._data):
            self._map()
        rows = self._rows[first : first + shape[0]]
        if end > len(self._data):
            raise NoLongerThere()
        with _one_at_a_time(self._fd):
            _take(rows, token)
        items = _Items(self._data, self._address + end - shape[0] * self.item_bytes, shape, dtype)
        weakref.finalize(items, _free, rows).atexit = False
        return np.asarray(items)


class _Items:
    """Memory as NumPy takes it over; the array refers to this object, and this object to the mapping."""

    def __init__(self, data: Array, address: int, shape: Sequence[int], dtype: np.dtype[np.generic]) -> None:
        self.data = data
        self.__array_interface__: Mapping[str, object] = {
            "data": (address, True),
            "shape": tuple(shape),
            "typestr": dtype.str,
            "version": 3,
        }


@contextlib.contextmanager
def _one_at_a_time(fd: int) -> Iterator[None]:
    """Of all instances' processes: a client may send the same reference to two, and the first to have read frees it."""
    # flock's lock is the owner's, and lockf's ends where this process closes any other descriptor of the file.
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def _take(rows: Array, token: Array) -> None:
    if not _are_for_reading(rows, token):
        raise NoLongerThere()
    rows["reader"] = os.getpid()
    # In between, after all, somebody may have filled them again, for somebody else to read.
    if not (rows["token"] == token).all():
        rows["reader"] = 0
        raise NoLongerThere()


def _are_for_reading(rows: Array, token: Array) -> bool:
    # The clock is the machine's, and so the other process's.
    return bool(
        len(rows)
        and token.any()
        and (rows["token"] == token).all()
        and not rows["reader"].any()
        and (rows["filled"] > time.monotonic() - PATIENCE_S).all()
    )


def _free(rows: Array) -> None:
    rows["token"] = 0
