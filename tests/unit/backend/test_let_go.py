"""Errors whose traceback would keep what has to go in an order."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from pinstream.errors import EngineError, let_go


class Engine:
    """Something that somebody made on the way to an error."""


def fail(made: list[weakref.ref[Engine]]) -> None:
    engine = Engine()
    made.append(weakref.ref(engine))
    raise RuntimeError


def fail_because(made: list[weakref.ref[Engine]]) -> None:
    engine = Engine()
    made.append(weakref.ref(engine))
    try:
        fail(made)
    except RuntimeError as error:
        raise EngineError("no context") from error


def fail_meanwhile(made: list[weakref.ref[Engine]]) -> None:
    engine = Engine()
    made.append(weakref.ref(engine))
    try:
        fail(made)
    finally:
        raise EngineError("no context")


@pytest.mark.parametrize("failing", [fail_because, fail_meanwhile])
def test_calls_let_go_of_what_they_made_and_the_traceback_stays(failing: Any) -> None:
    made: list[weakref.ref[Engine]] = []
    with pytest.raises(EngineError, match="no context") as caught:
        failing(made)
    assert [engine() is None for engine in made] == [False, False]
    let_go(caught.value)
    assert [engine() is None for engine in made] == [True, True]
    assert [entry.name for entry in caught.traceback][-1] == failing.__name__
