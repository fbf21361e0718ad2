"""Signals that ask to stop: none is lost, wherever they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from pinstream_cli.triton.stops import STOPS, uninterrupted

PASSED_OVER = """
import signal
from pinstream_cli.triton.stops import check_stops, stop_on_signals

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

stop_on_signals()
check_stops()
Finalized()
print("went on")
try:
    check_stops()
except KeyboardInterrupt:
    print("heard")
"""


def test_a_signal_that_comes_where_its_exception_is_passed_over_is_heard_later() -> None:
    done = subprocess.run([sys.executable, "-c", PASSED_OVER], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\nheard\n"
    assert "Exception ignored in" in done.stderr


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
