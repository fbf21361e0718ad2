"""Places in /dev/shm for tests, which are gone afterwards, and inputs that come from them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pinstream.references import HEADER, ROW, ROWS_AT, References
from pinstream.tensors import Array, TensorSpec
from yolox_steps.places import DIRECTORY, PATIENCE_S, PREFIX, SUFFIX, Held, Places

# 256 bytes an item, more than a reference to one.
TENSOR = TensorSpec("x", "FP32", (8, 8))


def name_of_region() -> str:
    """A name as Triton's stubs have them."""
    return f"{PREFIX}test_{uuid.uuid4()}{SUFFIX}"


@contextlib.contextmanager
def places(
    name: str = "", tensor: TensorSpec = TENSOR, most: int = 32, read_within_s: float = PATIENCE_S
) -> Iterator[Places]:
    """A region of places for items of a tensor."""
    name = name or name_of_region()
    made = Places(name, tensor.item_bytes, most, read_within_s)
    try:
        yield made
    finally:
        # As `close` does, but at once.
        (DIRECTORY / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closed before
            os.close(made._fd)


def numbers(items: int, seed: int = 0, tensor: TensorSpec = TENSOR) -> Array:
    """Random items of a tensor."""
    data = np.random.default_rng(seed).integers(1, 120, (items, *tensor.shape))
    return data.astype(tensor.numpy_dtype)


def held_with(made: Places, data: Array) -> Held:
    """Places with these items in them."""
    held = made.hold(len(data))
    assert held is not None
    held.items[:] = data.reshape(len(data), -1).view(np.uint8)
    return held


def read(readers: References, references: Array, name: str = "x") -> Array:
    """What a request with these references gives the model."""
    inputs = readers.resolve({f"{name}_at": references})
    assert inputs.keys() == {name}
    array = inputs[name]
    assert isinstance(array, np.ndarray)
    return array


def free(made: Places) -> list[bool]:
    """Which places could be filled."""
    found: list[bool] = made._free().tolist()
    return found


def regions(prefix: str) -> list[Path]:
    """Those of a server whose Triton's regions begin so."""
    return sorted(DIRECTORY.glob(f"{prefix}*{SUFFIX}"))


def taken(prefix: str) -> int:
    """Places of a server that somebody is to read, or reads."""
    return sum(int(_rows(path)["token"].any(axis=1).sum()) for path in regions(prefix))


def _rows(path: Path) -> Array:
    with path.open("rb") as file:
        return np.frombuffer(file.read(HEADER)[ROWS_AT:], ROW)
