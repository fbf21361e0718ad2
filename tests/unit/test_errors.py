"""Every error of the backend and of the YOLOX steps has a line in docs/errors.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.documented import documented_in

ROOT = Path(__file__).parents[2]
# Beginnings of messages that nobody reads as they are, and why.
INNER = {
    "DLPack has elements of": "a fault of ours: the client gets `internal error (ValueError)`",
    "the tensor on the GPU is not contiguous": "as above",
    "this array on the GPU can only be read there": "as above",
    "the plan has outputs whose shapes": "stands behind the warning `no CUDA graphs`",
    "TensorRT says that this plan's work cannot be captured": "as above",
    "true or false": "stands behind `parameter ... in config.pbtxt; it must be`",
    "batch sizes separated by commas": "as above",
    "a whole number from": "as above",
    "one of 7": "as above",
    "expected a string, found": "stands behind `model.json is malformed`",
    "expected a file name in the sidecar's own directory": "as above",
    "expected a list, found": "as above",
    "7 of shape 7 has a profile of": "as above",
    "found 7 and 7": "stands behind `does not describe a YOLOX detector`",
    "7; build it on this machine: ": "stands behind `cannot be loaded by tensorrt`",
    "no image: found 7; expected the content": "7 is `N bytes that begin with ...`",
}


def text_of(node: ast.AST) -> str:
    """What a message says, with 7 for what only a run can tell."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            return text_of(node.func.value)
        return "7".join(map(text_of, node.args))  # a function that adds to the message
    return "7"


def messages() -> Iterator[tuple[str, str]]:
    """Where an error is made that has words of its own, and its message."""
    for top in ("backend", "model_repository"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args:
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    text = text_of(node.args[0])
                    if name.endswith(("Error", "InvalidRequest")) and re.search("[a-z]", text):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", text


@pytest.mark.parametrize(
    ("message", "stated", "another"),
    [
        # By the row, and by what the page says HTTP makes of it.
        ("Unable to find shared memory region: 'x'", ("NOT_FOUND", "404"), ("INVALID_ARGUMENT", "400")),
        ("has shape [1]; expected [2]", ("INVALID_ARGUMENT", "400"), ("INTERNAL", "500")),
        ("nothing to be decompressed", ("400",), ("500", "INVALID_ARGUMENT")),
        ("This API is restricted, expecting header x", ("403", "UNAVAILABLE"), ("503",)),
        # By the heading.
        ("found no bytes at all", ("INVALID_ARGUMENT", "400"), ("INTERNAL",)),
        # Of tables without any.
        ("is damaged: it has a name that is no text", ("INTERNAL", "500", "INVALID_ARGUMENT"), ()),
    ],
)
def test_a_message_stands_there_with_its_status(
    message: str, stated: tuple[str, ...], another: tuple[str, ...]
) -> None:
    assert documented_in(message)
    assert all(documented_in(message, status) for status in stated)
    assert not any(documented_in(message, status) for status in another)


def test_every_error_has_a_line() -> None:
    found = list(messages())
    assert len(found) > 150, "the search has gone blind"
    undocumented = {text: where for where, text in found if not documented_in(text)}
    without = {text: where for text, where in undocumented.items() if not text.startswith(tuple(INNER))}
    assert not without, without
    idle = [start for start in INNER if not any(text.startswith(start) for text in undocumented)]
    assert not idle, f"no longer there, or documented: {idle}"
