"""What a model instance decides by its engines: whether it is ready, and whether it waits for a request itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

TRITON = "triton_python_backend_utils"
# What imports it.
KNOW_TRITON = ("pinstream.model", "pinstream.triton_answers", "pinstream.triton_reports")


@dataclass
class Engine:
    """As much of an engine as tells how it is."""

    failure: str
    recovers: bool
    alone: bool = False


WELL, WELL_AND_RECOVERS = Engine("", False), Engine("", True)
LOST, COMES_BACK = Engine("the GPU context is lost", False), Engine("its process is gone", True)


class Idle:
    """Executions of which none is under way, or one is."""

    def __init__(self, loop: str | None) -> None:
        self._loop = loop

    def idle(self) -> str | None:
        """See Executions."""
        return self._loop


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model instance that nothing is loaded into; of Triton's module nothing is used here."""
    monkeypatch.setitem(sys.modules, TRITON, ModuleType(TRITON))
    yield importlib.import_module("pinstream.model").TritonPythonModel()
    for name in KNOW_TRITON:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("engines", "ready"),
    [
        ([WELL], True),
        ([WELL_AND_RECOVERS], True),
        ([LOST], False),
        # The next request starts it again: it has to be sent one.
        ([COMES_BACK], True),
        # One for each of an instance's executions.
        ([WELL, WELL], True),
        ([WELL, LOST], False),
        ([LOST, WELL], False),
        ([COMES_BACK, WELL_AND_RECOVERS], True),
        ([COMES_BACK, LOST], False),
    ],
)
def test_a_model_is_ready_while_none_of_its_engines_is_lost_for_good(
    model: Any, engines: Sequence[Engine], ready: bool
) -> None:
    model._engines = engines
    assert model.is_ready() is ready


def test_a_model_whose_engine_is_lost_meanwhile_is_ready_no_more(model: Any) -> None:
    engine = Engine("", False)
    model._engines = [engine]
    assert model.is_ready()
    engine.failure = LOST.failure
    assert not model.is_ready()


@pytest.mark.parametrize(
    ("alone", "other_instances", "idle", "waits"),
    [
        ([True, True], True, "the next", True),
        # Others had something under way when one of them was last asked.
        ([True, False], True, "the next", False),
        ([False, False], True, "the next", False),
        # Nobody else would take what comes meanwhile.
        ([True, True], False, "the next", False),
        ([True, True], True, None, False),
    ],
)
def test_an_instance_waits_for_a_request_that_nothing_is_under_way_beside(
    model: Any, alone: list[bool], other_instances: bool, idle: str | None, waits: bool
) -> None:
    model._engines = [Engine("", True, each) for each in alone]
    model._other_instances = other_instances
    model._executions = Idle(idle)
    assert model._lone_loop() == (idle if waits else None)


def test_an_instance_of_one_execution_waits_for_everything(model: Any) -> None:
    model._engines, model._other_instances, model._executions = [Engine("", True, True)], True, None
    assert model._lone_loop() is None
