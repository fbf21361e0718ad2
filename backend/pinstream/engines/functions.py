"""ONNX's local functions: how large they make a model once they are expanded, bounded without expanding them.

A function that calls another one twice, which calls another one twice, makes millions of nodes of a file of a kilobyte.
All that is not sure counts as the most that it may be, and where that cannot be told the model is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, BinaryIO

from pinstream.errors import first_line
from pinstream.regular import open_regular

# ONNX Runtime takes up to six seconds for so many, and four times as long for twice as many; exports have some
# thousands. What a node reads takes a multiple of its bytes in memory.
MOST_NODES, MOST_BYTES = 20_000, 256 << 20

# How Protocol Buffers mark what a field holds, and how long it may be.
_VARINT, _BYTES, _LONGEST = 0, 2, 2 << 30
# The fields of a ModelProto but for its functions, and their tags.
_VARINT_FIELDS, _BYTES_FIELDS = (1, 5), (2, 3, 4, 6, 7, 8, 14, 20, 26)
_TAGS = {n << 3 | _VARINT for n in _VARINT_FIELDS} | {n << 3 | _BYTES for n in _BYTES_FIELDS}

_UNBOUND = "with attributes that nobody hands over"

# A function's domain and name. Overloads of one name count as the largest of them.
Key = tuple[str, str]


class _Undecidable(Exception):
    """What keeps the size from being told."""


@dataclass(frozen=True)
class _Size:
    """What a part of a model becomes: so many nodes and bytes, and as often all that its function's caller hands over.

    They stop a little above what is too much, since they may grow without end.
    """

    nodes: int = 0
    size: int = 0
    handed: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(
            min(self.nodes + other.nodes, MOST_NODES + 1),
            min(self.size + other.size, MOST_BYTES + 1),
            min(self.handed + other.handed, MOST_BYTES + 1),
        )

    def given(self, attributes: _Size) -> _Size:
        """What a function becomes where it is called with these attributes."""
        return _Size(self.nodes, self.size) + _Size(
            self.handed * attributes.nodes, self.handed * attributes.size, self.handed * attributes.handed
        )


def why_refused(model: Any) -> str:
    """What is wrong with a model's functions and what to do, as "has functions that make ..."; empty if nothing.

    Args:
        model: The onnx.ModelProto.
    """
    if not model.functions:
        return ""
    try:
        _check(model)
    except _Undecidable as reason:
        return f"has functions {reason}; export it without functions"
    return ""


def why_file_refused(path: Path) -> str:
    """`why_refused` of a file; also where it may have functions and is none that onnx can read, though others may."""
    try:
        with open_regular(path) as stream:
            if not _may_have_functions(stream):
                return ""
            import onnx

            stream.seek(0)
            # By its content, whatever its name: onnx.load goes by that.
            return why_refused(onnx.ModelProto.FromString(stream.read()))
    except OSError:  # which who opens it tells better
        return ""
    except Exception as error:  # protobuf's error is of a module of its own
        return (
            f"({path.stat().st_size:,} bytes) is not an ONNX model that onnx can read: {first_line(error)}; "
            "check the file with onnx.checker or export it again"
        )


def _check(model: Any) -> None:
    bodies: dict[Key, list[Any]] = {}
    for function in model.functions:
        bodies.setdefault(_key(function.domain, function.name), []).append(function)
    whole: dict[Key, _Size] = {}
    try:
        for key in TopologicalSorter({key: _called(found) for key, found in bodies.items()}).static_order():
            if key in bodies:
                whole[key] = _largest(_function_size(function, whole) for function in bodies[key])
    except CycleError:
        raise _Undecidable("that call themselves") from None
    size = _nodes_size(model.graph.node, whole)
    if size.handed:
        raise _Undecidable(_UNBOUND)
    if size.nodes > MOST_NODES or size.size > MOST_BYTES:
        raise _Undecidable(
            f"that make more than {MOST_NODES:,} nodes or {MOST_BYTES >> 20} MiB of it when they are expanded"
        )


def _called(functions: Iterable[Any]) -> set[Key]:
    """Whatever the nodes of functions, and of what these hand over where nobody else does, may call."""
    return {
        _key(node.domain, node.op_type)
        for function in functions
        for nodes in (function.node, *(graph.node for a in function.attribute_proto for graph in _graphs(a)))
        for node in _with_inner(nodes)
    }


def _function_size(function: Any, whole: Mapping[Key, _Size]) -> _Size:
    defaults = _attributes_size(function.attribute_proto, whole)
    if defaults.handed:
        raise _Undecidable(_UNBOUND)
    body = _nodes_size(function.node, whole)
    rest = _Size(0, function.ByteSize() - sum(node.ByteSize() for node in function.node))
    # Its references stay open for what callers hand over, and what it has by default may take the place of each.
    return body.given(defaults) + rest + _Size(handed=body.handed)


def _nodes_size(nodes: Iterable[Any], whole: Mapping[Key, _Size]) -> _Size:
    total = _Size()
    for node in nodes:
        attributes = _attributes_size(node.attribute, whole)
        function = whole.get(_key(node.domain, node.op_type), _Size())
        total += _Size(1, node.ByteSize() - sum(a.ByteSize() for a in node.attribute)) + attributes
        total += function.given(attributes)
    return total


def _attributes_size(attributes: Iterable[Any], whole: Mapping[Key, _Size]) -> _Size:
    """Of attributes with their branches and bodies, whose bytes count once more."""
    total = _Size()
    for attribute in attributes:
        total += _Size(0, attribute.ByteSize(), 1 if attribute.ref_attr_name else 0)
        for graph in _graphs(attribute):
            total += _nodes_size(graph.node, whole)
    return total


def _largest(sizes: Iterable[_Size]) -> _Size:
    every = list(sizes)
    return _Size(max(s.nodes for s in every), max(s.size for s in every), max(s.handed for s in every))


def _with_inner(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes, and those of their branches and bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _with_inner(graph.node)


def _graphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _key(domain: str | bytes, name: str | bytes) -> Key:
    # What is no text comes as bytes. ONNX Runtime joins the two by a colon, and another one would be taken for it.
    if isinstance(domain, bytes) or isinstance(name, bytes) or {":", "\0"} & {*domain, *name}:
        raise _Undecidable(f"where a name has a colon in it, or is no text ({domain!r}, {name!r})")
    return "" if domain == "ai.onnx" else domain, name


def _may_have_functions(stream: BinaryIO) -> bool:
    """Whether a ModelProto may have any, by the tags of its fields: few have, and large ones take long to read.

    What is written in any other way than usual, of which readers make different things, counts as functions.
    """
    while (tag := _varint(stream)) is not None:
        number = _varint(stream)
        if tag not in _TAGS or number is None or number < 0:
            return True
        if tag & 7 == _BYTES:
            if number > _LONGEST:
                return True
            stream.seek(number, os.SEEK_CUR)
    return False


def _varint(stream: BinaryIO) -> int | None:
    """A number as Protocol Buffers write it; None at the end, -1 where it has none."""
    number = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return -1 if shift else None
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    return -1
