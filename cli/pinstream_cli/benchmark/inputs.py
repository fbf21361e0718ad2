"""Inputs: the same seeded items for the bare loop and for perf_analyzer, and its JSON form."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pinstream.tensors import Array, ModelSpec, TensorSpec
from pinstream_cli.errors import CommandError

SEED = 0


def random_item(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Array]:
    """One item of every input, from a fixed seed.

    Args:
        spec: The model.
        shapes: Item shapes by input, for inputs with dynamic dimensions.

    Returns:
        Arrays by input name, without the batch dimension. Integers other than UINT8 are 0 or 1, which any model that
        takes indices can take; floats lie in [0, 1).

    Raises:
        CommandError: A shape is missing or does not fit.
    """
    generator = np.random.default_rng(SEED)
    return {tensor.name: _random(generator, tensor, _item_shape(tensor, shapes or {})) for tensor in spec.inputs}


def _item_shape(tensor: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    shape = shapes.get(tensor.name, tensor.shape)
    if not tensor.accepts(shape) or min(shape, default=1) < 0:
        raise CommandError(
            f"input '{tensor.name}' has item shape {list(tensor.shape)}; name one that fits with "
            f"--shape {tensor.name}:{','.join(str(max(1, d)) for d in tensor.shape)}"
        )
    return shape


def _random(generator: np.random.Generator, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    if tensor.dtype == "BYTES":
        return np.full(shape, b"pinstream", np.object_)
    if tensor.dtype == "UINT8":
        return generator.integers(0, 256, shape, np.uint8)
    if tensor.dtype.startswith(("FP", "BF")):
        return generator.random(shape).astype(tensor.numpy_dtype)
    return generator.integers(0, 2, shape).astype(tensor.numpy_dtype)


def batch_of(item: Mapping[str, Array], batch: int, spec: ModelSpec) -> dict[str, Array]:
    """`batch` copies of an item, batch dimension first; the item itself where the model has no batch dimension."""
    if spec.batch is None:
        return dict(item)
    return {name: np.stack([array] * batch) for name, array in item.items()}


def write_json(path: Path, items: Sequence[Mapping[str, Array]]) -> Path:
    """Write items as perf_analyzer's --input-data takes them; it goes through them in turn."""
    data = [{name: _entry(array) for name, array in item.items()} for item in items]
    path.write_text(json.dumps({"data": data}))
    return path


def _entry(array: Array) -> dict[str, Any]:
    raw = b"".join(map(length_prefixed, array.reshape(-1))) if array.dtype.hasobject else array.tobytes()
    return {"content": {"b64": base64.b64encode(raw).decode()}, "shape": list(array.shape)}


def length_prefixed(content: bytes) -> bytes:
    """An element of a BYTES tensor as it travels: its length in 4 bytes, little-endian, before it."""
    return struct.pack("<I", len(content)) + content


def encoded_image(content: bytes) -> dict[str, Array]:
    """The input of the YOLOX ensemble: `image` BYTES [1]."""
    image = np.empty(1, np.object_)
    image[0] = content
    return {"image": image}
