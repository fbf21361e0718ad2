"""Signals that ask to stop: none is lost, wherever they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from pinstream_cli.triton.stops import STOPS, uninterrupted

# Asks to stop where Python passes over the exception.
PASSED_OVER = """
import signal
from pinstream_cli.triton.stops import check_stops, stop_on_signals
from pinstream_cli.triton.watchdog import Backoff

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

stop_on_signals()
check_stops()
Finalized()
print("went on")
try:
    {wait}
except KeyboardInterrupt:
    print("heard")
"""
WAITS = {"check": "check_stops()", "break between two starts": "Backoff().sleep(1)"}


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_that_comes_where_its_exception_is_passed_over_is_heard_later(wait: str) -> None:
    script = PASSED_OVER.replace("{wait}", WAITS[wait])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\nheard\n"
    assert "Exception ignored in" in done.stderr


AGAIN = """
import signal
from pinstream_cli.triton.stops import stop_on_signals

stop_on_signals()
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        print(number.name)
"""


def test_once_asked_only_ctrl_c_asks_again() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "SIGTERM\nSIGINT\n"


def handlers() -> Sequence[object]:
    return [signal.getsignal(stop) for stop in STOPS]


def test_signals_come_once_it_is_done_and_find_their_handlers_again() -> None:
    before, done = handlers(), []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert handlers() == before
    # Elsewhere than in the main thread nothing of that can be, or need be.

    def elsewhere() -> None:
        with uninterrupted():
            done.append(True)

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert handlers() == before


def test_every_handler_is_back_though_a_signal_comes_as_they_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, given_back = handlers(), signal.signal

    def interrupted(number: signal.Signals, handler: Any) -> None:
        given_back(number, handler)
        if handler is signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)

    def work() -> None:
        with uninterrupted():
            monkeypatch.setattr(signal, "signal", interrupted)

    own = given_back(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        given_back(signal.SIGTERM, own)
    assert handlers() == before
