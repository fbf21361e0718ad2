"""Clients of the long tests that meet what nobody foresaw: it is a fault, and none of them ends unnoticed."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinstream_cli.triton import Endpoints
from tests.chaos_scene import OWN, Scene
from tests.client_threads import ClientThreads
from tests.fuzz.beside import Neighbour
from tests.server.running import Running
from tests.soak import CLIENTS, Clients


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait(event: threading.Event) -> None:
    event.wait()


@pytest.fixture
def nowhere() -> Any:
    """A server that is not there: its port answers nobody."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        yield Running(Endpoints("127.0.0.1", port, port, port), None, None)  # type: ignore[arg-type]


def test_clients_that_run_until_they_are_told_are_no_fault() -> None:
    stopped = threading.Event()
    threads = ClientThreads([lambda: _wait(stopped)] * 2, stopped)
    threads.start()
    assert threads.stop(20) == []


def test_a_client_that_has_ended_or_does_not_end_is_a_fault() -> None:
    stopped, released = threading.Event(), threading.Event()
    threads = ClientThreads([lambda: None, lambda: _wait(released)], stopped)
    threads.start()
    _until(lambda: threads.running == 1)
    assert threads.stop(0.05) == [
        "1 of 2 clients had ended before they were told to",
        "1 of 2 clients do not end within 0.05 s",
    ]
    released.set()


class _OfTheSoak:
    def ask(self, client: Any, rng: np.random.Generator) -> str:
        # As it is where an answer has no output.
        missing: Any = None
        np.testing.assert_allclose(missing, rng.normal(size=3))
        return "1"


def test_an_answer_without_its_output_is_a_fault_of_the_soak(nowhere: Running) -> None:
    clients = Clients(nowhere, _OfTheSoak(), 0.01)  # type: ignore[arg-type]
    with clients:
        _until(lambda: len(clients.faults) > CLIENTS)
    assert len(clients.faults) > CLIENTS
    assert {fault.partition(":")[0] for fault in clients.faults} == {"no answer to compare"}


class _OfTheChaos(Scene):
    def _infer(self, model: str, pixels: Any) -> Any:
        return None


def test_an_answer_without_its_output_is_a_fault_of_the_chaos(tmp_path: Path) -> None:
    scene = _OfTheChaos(tmp_path)
    assert scene.ask(OWN, np.random.default_rng(0)) == "wrong"
    (fault,) = scene.faults
    assert fault.startswith(f"no answer of {OWN} to compare: TypeError")


class _OfTheFuzz(Neighbour):
    """Gets so many answers, and nothing that can be compared afterwards."""

    answers = 0

    def _infer(self, request: Any) -> list[bytes]:
        self.answers -= 1
        if self.answers < 0:
            raise TypeError("no answer")
        return []


def test_what_is_no_answer_is_a_fault_of_the_fuzz(nowhere: Running) -> None:
    neighbour = _OfTheFuzz(nowhere)
    neighbour.answers = 3
    with neighbour:
        _until(lambda: len(neighbour.wrong) > 3)
    assert len(neighbour.wrong) > 3
    assert neighbour.wrong[0] == "yolox: no answer to compare: TypeError: no answer"


def test_a_neighbour_without_a_first_answer_is_a_fault_of_the_fuzz(
    nowhere: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with _OfTheFuzz(nowhere) as neighbour:
        _until(lambda: not neighbour._client.running)
    assert neighbour.wrong == ["1 of 1 clients had ended before they were told to"]
