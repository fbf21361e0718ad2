"""Batches become CUDA graphs once each, or none do, and the log says why once. Real captures are in tests/gpu."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pinstream.errors import EngineError

graphs = pytest.importorskip("pinstream.engines.graphs", reason="needs the cuda-python package")


class Graph:
    """What a capture makes."""

    destroyed = False

    def upload(self, stream: Any) -> None: ...

    def destroy(self) -> None:
        self.destroyed = True


class Slot:
    """A slot with a batch of one input."""

    def __init__(self, width: int = 4) -> None:
        self.inputs = {"row": None}
        self.shapes = {"row": (1, width)}


class Context:
    """A context that says of its plan what it is told to, and keeps what it was asked for."""

    def __init__(self, depends: bool = False, capturable: bool = True, failure: str = "") -> None:
        self._depends, self._capturable, self._failure = depends, capturable, failure
        self.asked: list[str] = []

    def depends_on_data(self, shapes: Any) -> bool:
        self.asked.append("shapes")
        return self._depends

    def bind(self, slot: Slot) -> None:
        self.asked.append("bind")

    def capturable(self, stream: Any) -> bool:
        return self._capturable

    def enqueue(self, slot: Slot, stream: Any) -> None:
        self.asked.append("enqueue")
        if self._failure:
            raise EngineError(self._failure)

    def output_shapes(self, shapes: Any) -> dict[str, tuple[int, ...]]:
        return dict(shapes)


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Every graph that is captured; its work is done at once."""
    made: list[Graph] = []

    def capture(stream: Any, work: Callable[[], None]) -> Graph:
        work()
        made.append(Graph())
        return made[-1]

    monkeypatch.setattr(graphs.cuda, "capture", capture)
    return made


@pytest.mark.parametrize(
    ("context", "reason", "asked"),
    [
        (Context(depends=True), "the plan has outputs whose shapes depend on the data", ["shapes"]),
        (Context(capturable=False), "TensorRT says that this plan's work cannot be captured", ["shapes", "bind"]),
        (Context(failure="a loop on the host"), "a loop on the host", ["shapes", "bind", "enqueue"]),
    ],
)
def test_what_cannot_be_captured_is_said_once_and_not_tried_again(
    context: Context, reason: str, asked: list[str], captured: list[Graph], caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as resources:
        found = graphs.Graphs(None, resources)
        slots = Slot(), Slot(), Slot(8)
        for slot in slots:
            found.capture(slot, context)
            assert found.find(slot) is None
    assert [record.getMessage() for record in caplog.records] == [f"no CUDA graphs: {reason}"]
    assert context.asked == asked
    assert (len(found), captured) == (0, [])


def test_a_batch_is_captured_once_for_each_slot_and_shape_and_forgotten_with_its_slot(captured: list[Graph]) -> None:
    with ExitStack() as resources:
        found, first, second = graphs.Graphs(None, resources), Slot(), Slot()
        for slot in (first, second, first):
            found.capture(slot, Context())
        first.shapes = {"row": (1, 8)}
        assert found.find(first) is None
        found.capture(first, Context())
        assert len(found) == len(captured) == 3
        assert found.find(first).graph is captured[2]
        assert found.find(first).output_shapes == {"row": (1, 8)}
        found.forget(first)
        assert (found.find(first), found.find(second).graph) == (None, captured[1])
        assert not any(graph.destroyed for graph in captured)
    assert all(graph.destroyed for graph in captured)
