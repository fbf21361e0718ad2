"""ONNX's local functions: how large they make a model once they are expanded, found without expanding them.

A function that calls another one twice, which calls another one twice, makes millions of nodes of a file of a kilobyte.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, BinaryIO

from pinstream.regular import open_regular

# Far beyond any network, and still read in a minute; and what Protocol Buffers take at most.
MOST_NODES, MOST_BYTES = 1_000_000, 2 << 30

# ModelProto's field, and how Protocol Buffers mark what a field holds.
_FUNCTIONS_FIELD, _VARINT, _BYTES = 25, 0, 2

Key = tuple[str, str, str]


@dataclass(frozen=True)
class _Size:
    """Nodes and bytes of a graph, and how often it calls which function."""

    nodes: int
    size: int
    calls: Counter[Key]


def why_too_large(model: Any) -> str:
    """How much the functions of a model make of it, as "more than 1,000,000 nodes", where that is too much; else empty.

    Functions that call themselves are left to those who expand them, and refuse it.

    Args:
        model: The onnx.ModelProto.
    """
    if not model.functions:
        return ""
    own = {(_domain(f.domain), f.name, f.overload): _size(f.node) for f in model.functions}
    whole: dict[Key, tuple[int, int]] = {}
    try:
        for key in TopologicalSorter({key: size.calls for key, size in own.items()}).static_order():
            if key in own:
                whole[key] = _expanded(own[key], whole)
    except CycleError:
        return ""
    nodes, size = _expanded(_size(model.graph.node), whole)
    if nodes <= MOST_NODES and size <= MOST_BYTES:
        return ""
    return f"more than {MOST_NODES:,} nodes or {MOST_BYTES >> 30} GiB"


def why_file_too_large(path: Path) -> str:
    """`why_too_large` of a file; empty, too, where it cannot be read, which others tell better."""
    try:
        with open_regular(path) as stream:
            if not _has_functions(stream):
                return ""
        import onnx

        return why_too_large(onnx.load(str(path), load_external_data=False))
    except Exception:  # protobuf's error and onnx's own share no base class
        return ""


def _has_functions(stream: BinaryIO) -> bool:
    """Whether a ModelProto may have any, by the tags of its fields: few have, and large ones take long to read."""
    while (tag := _varint(stream)) is not None:
        field, kind = tag >> 3, tag & 7
        # Of other kinds a model has no field: onnx is to say what it is.
        if field == _FUNCTIONS_FIELD or kind not in (_VARINT, _BYTES):
            return True
        length = _varint(stream) or 0
        if kind == _BYTES:
            stream.seek(length, os.SEEK_CUR)
    return False


def _varint(stream: BinaryIO) -> int | None:
    """A number as Protocol Buffers write it; None where there is none."""
    number = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return None
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    return None


def _expanded(own: _Size, whole: dict[Key, tuple[int, int]]) -> tuple[int, int]:
    """Nodes and bytes with all that is called; no more than just too many, since they may grow without end."""
    called = [(times, whole[key]) for key, times in own.calls.items() if key in whole]
    nodes = own.nodes + sum(times * nodes for times, (nodes, _) in called)
    size = own.size + sum(times * size for times, (_, size) in called)
    return min(nodes, MOST_NODES + 1), min(size, MOST_BYTES + 1)


def _size(nodes: Iterable[Any]) -> _Size:
    top = list(nodes)
    every = [node for node in top for node in _with_inner(node)]
    calls = Counter((_domain(node.domain), node.op_type, node.overload) for node in every)
    return _Size(len(every), sum(node.ByteSize() for node in top), calls)


def _with_inner(node: Any) -> Iterator[Any]:
    """A node, and those of its branches and bodies."""
    yield node
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from _with_inner(inner)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
