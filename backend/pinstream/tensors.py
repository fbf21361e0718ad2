"""What a tensor is: its name, Triton data type and shape. No Triton, no CUDA, no engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

# Triton's data types and how NumPy holds them. BF16 has no NumPy type: it travels as its bits.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}


def _between(smallest: Shape, shape: Shape, largest: Shape) -> bool:
    return all(low <= d <= high for low, d, high in zip(smallest, shape, largest, strict=True))


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: The engine's name for it.
        dtype: Triton's data type without the TYPE_ prefix ("FP32", "BYTES").
        shape: Item shape: without the batch dimension where the model batches. -1 is a dynamic dimension.
        bounds: What dynamic dimensions may be: (smallest, largest) item shapes, one pair for each optimisation profile.
            Empty where the engine sets no limits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bounds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype that holds this tensor."""
        return NUMPY_DTYPES[self.dtype]

    @property
    def is_static(self) -> bool:
        """Whether every dimension is known."""
        return all(d >= 0 for d in self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of one item; for a dynamic shape, dynamic dimensions count as 1."""
        return math.prod(abs(d) for d in self.shape) * self.numpy_dtype.itemsize

    def accepts(self, shape: Iterable[int]) -> bool:
        """Whether an item of `shape` fits, -1 on either side fitting anything."""
        shape = tuple(shape)
        return shape == self.shape or (
            len(shape) == len(self.shape)
            and all(a == b or -1 in (a, b) for a, b in zip(self.shape, shape, strict=True))
        )

    def within_bounds(self, shape: Iterable[int]) -> bool:
        """Whether an item of `shape` lies in the bounds of some profile."""
        shape = tuple(shape)
        return not self.bounds or any(_between(smallest, shape, largest) for smallest, largest in self.bounds)

    @property
    def config_dtype(self) -> str:
        """The data type as config.pbtxt writes it."""
        return "TYPE_STRING" if self.dtype == "BYTES" else f"TYPE_{self.dtype}"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Profile:
    """What one optimisation profile takes.

    Attributes:
        smallest: Its smallest batch.
        largest: Its largest batch.
        bounds: By input name, the smallest and largest item shape.
    """

    smallest: int
    largest: int
    bounds: tuple[tuple[str, Shape, Shape], ...]

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether items of these shapes, by input name, lie inside."""
        return all(_between(low, shapes[name], high) for name, low, high in self.bounds)


@dataclass(frozen=True)
class BatchSizes:
    """The batch sizes one run of an engine can have.

    Attributes:
        buckets: Ascending sizes that run. A batch in between is padded up to the next one, unless `exact`.
        exact: Every size from 1 to the largest bucket runs as it is.
        lanes: Runs that go on at the same time without slowing each other (CPU cores, not one GPU).
        costs: Measured time of each bucket in any one unit; without it, a fixed share plus a share per item.
        best: The most items worth running at once on an exact engine, where that was measured; 0 for the largest. On a
            CPU a larger batch can be slower an item, once it outgrows the caches.
        profiles: Where items of some shapes run in other batch sizes than items of others: what takes which.
    """

    buckets: tuple[int, ...]
    exact: bool = False
    lanes: int = 1
    costs: tuple[float, ...] = ()
    best: int = 0
    profiles: tuple[Profile, ...] = ()

    @property
    def largest(self) -> int:
        """The most items one run takes."""
        return self.buckets[-1]

    def holding(self, count: int) -> int:
        """The size that a batch of `count` items, no more than the largest, runs in."""
        return count if self.exact else next(size for size in self.buckets if size >= count)

    def of_shapes(self, shapes: Mapping[str, Shape]) -> BatchSizes:
        """The sizes that items of these shapes, by input name, run in; all where no profile says otherwise."""
        return _sizes_of_shapes(self, tuple(shapes.items())) if self.profiles else self


@lru_cache(maxsize=1024)
def _sizes_of_shapes(sizes: BatchSizes, shapes: tuple[tuple[str, Shape], ...]) -> BatchSizes:
    every = replace(sizes, profiles=())
    taking = [profile for profile in sizes.profiles if profile.takes(dict(shapes))]
    if sizes.exact:
        largest = max((profile.largest for profile in taking), default=0)
        if all(any(p.smallest <= n <= p.largest for p in taking) for n in range(1, largest + 1)) and largest:
            return replace(every, buckets=(largest,), best=min(sizes.best, largest))
        found = {n for p in taking for n in steps(p.smallest, p.largest)}
        return BatchSizes(tuple(sorted(found)), lanes=sizes.lanes) if found else every
    chosen = [i for i, size in enumerate(sizes.buckets) if any(p.smallest <= size <= p.largest for p in taking)]
    if not chosen:
        return every
    costs = tuple(sizes.costs[i] for i in chosen) if sizes.costs else ()
    return replace(every, buckets=tuple(sizes.buckets[i] for i in chosen), costs=costs)


def steps(low: int, high: int) -> set[int]:
    """Sizes to run where not all from 1 on can be: each is warmed up and captured by itself, so not too many."""
    return {low, high} | {1 << n for n in range(high.bit_length()) if low <= 1 << n <= high}


@dataclass(frozen=True)
class ModelSpec:
    """What an engine takes and gives.

    Attributes:
        inputs: In the engine's order.
        outputs: In the engine's order.
        batch: The batch sizes, or None where the model has no batch dimension.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchSizes | None
