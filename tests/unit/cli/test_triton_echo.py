"""What is shown of tritonserver's log: everything of a start, and of clients only so much."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinstream_cli.triton.echo import MOST_SHOWN, Echo

LOG = Path("t.log")
WINDOW_S = 0.5


def line(number: int, length: int = 100) -> str:
    return f"E1127 14:33:33.417307 13465 hpack_parser.cc:833] {number}".ljust(length, ".")


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def echo(shown: list[str]) -> Iterator[Echo]:
    echo = Echo(shown.append, LOG, WINDOW_S)
    yield echo
    echo.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_warnings_and_errors_are_shown(echo: Echo, shown: list[str]) -> None:
    for text in ("I1127 loaded", "W1127 a warning", "E1127 an error", "F1127 the end", "E1127 NVML is not there", ""):
        echo.add(text)
    assert shown == ["W1127 a warning", "E1127 an error", "F1127 the end"]


def test_a_start_is_shown_whole(echo: Echo, shown: list[str]) -> None:
    lines = [line(number, 10_000) for number in range(1000)]
    for text in lines:
        echo.add(text)
    assert shown == lines


def test_of_many_the_first_are_shown_and_the_others_counted_once(echo: Echo, shown: list[str]) -> None:
    echo.limit()
    for number in range(1000):
        echo.add(line(number))
    first = MOST_SHOWN // 100
    assert shown == [line(number) for number in range(first)]
    wait_for(lambda: len(shown) > first)
    echo.add(line(1000))
    assert shown[first:] == [f"... and {1000 - first} more warnings or errors in 0.5 s: see t.log", line(1000)]
    time.sleep(2 * WINDOW_S)
    assert shown[-1] == line(1000), "nothing is said where nothing was left out"


def test_the_bound_is_of_characters_however_long_the_lines_are(echo: Echo, shown: list[str]) -> None:
    echo.limit()
    for number in range(100):
        echo.add(line(number, 3000))
    echo.add(line(100, MOST_SHOWN + 1))
    assert sum(map(len, shown)) <= MOST_SHOWN
    assert len(shown) == 2


def test_what_was_left_out_is_counted_at_the_end_as_well(echo: Echo, shown: list[str]) -> None:
    echo.limit()
    for number in range(2000):
        echo.add(line(number))
    echo.close()
    assert shown[-1] == "... and 1,920 more warnings or errors"


def test_a_closed_terminal_costs_lines_and_nothing_else() -> None:
    texts: list[str] = []

    def show(text: str) -> None:
        texts.append(text)
        if text.startswith("..."):
            raise SystemExit(1)

    echo = Echo(show, LOG, WINDOW_S)
    echo.limit()
    for number in range(100):
        echo.add(line(number))
    wait_for(lambda: texts[-1].startswith("..."))
    echo.add(line(100))
    assert texts[-1] == line(100)
    echo.close()
