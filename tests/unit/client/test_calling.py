"""Options, headers, background calls and the gate before a fork."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from pinstream_client import Detector, InvalidRequest
from pinstream_client.calls import CallPool
from pinstream_client.connecting import AHEAD
from pinstream_client.forking import ForkGate
from pinstream_client.options import TLS, Options
from pinstream_client.yolox import DETECTION_OUTPUTS
from tests.network import http_answer, read_http_request, serving_connections


def test_headers_and_token_are_asked_for_each_time() -> None:
    count = iter(range(10))
    options = Options(headers=lambda: {"X-Number": str(next(count))}, token=lambda: f"t{next(count)}")
    assert options.headers_now() == {"x-number": "0", "authorization": "Bearer t1"}
    assert options.headers_now() == {"x-number": "2", "authorization": "Bearer t3"}
    assert Options(headers={"A": "b"}, token="c").headers_now() == {"a": "b", "authorization": "Bearer c"}
    assert Options().headers_now() == {}


@pytest.mark.parametrize(
    "headers", [{"x-team": "vision\r\nx-admin: yes"}, {"x-team": "Größe"}, {"x team": "a"}, {"": "a"}, {"x-number": 1}]
)
def test_headers_that_no_line_can_hold_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected one line of ASCII text"):
        Options(headers=headers).headers_now()
    with pytest.raises(InvalidRequest, match="the header 'authorization' cannot be sent") as caught:
        Options(token="secret\n").headers_now()
    assert "secret" not in str(caught.value)


def test_an_answer_that_takes_long_holds_up_what_is_yielded_and_not_at_once_what_is_sent() -> None:
    answer_it, sent, taken = threading.Event(), [], []
    metadata = b'{"inputs":[{"name":"image"}],"outputs":[%s]}'
    outputs = b",".join(b'{"name":"%s"}' % name.encode() for name in DETECTION_OUTPUTS)

    def handle(connection: socket.socket, _: int) -> None:
        while request := read_http_request(connection):
            if request.startswith(b"GET"):
                connection.sendall(http_answer(metadata % outputs))
                continue
            sent.append(request)
            if b"slow" in request:
                answer_it.wait(10)
            connection.sendall(http_answer(b'{"error":"no picture"}', "400 Bad Request"))

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=20) as detector:
        stream = detector.stream([b"slow"] + [b"quick"] * 20, in_flight=2, on_error="return")
        consumer = threading.Thread(target=lambda: taken.append(next(stream)))
        consumer.start()
        deadline = time.monotonic() + 10
        while len(sent) < 2 * AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(sent) == 2 * AHEAD
        assert taken == []
        answer_it.set()
        consumer.join(10)
        assert len([*taken, *stream]) == len(sent) == 21


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"compression": "zstd"}, "compression is 'zstd'"), ({"tls": TLS(cert="client.pem")}, "give cert and key")],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**wrong)


def test_closing_cancels_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream_client.calls.MOST_THREADS", 1)
    pool, go = CallPool(), threading.Event()
    first = pool.start(lambda cancellation: go.wait(10))
    second = pool.start(lambda cancellation: None)
    threading.Timer(0.1, go.set).start()
    pool.close()
    assert first.result(0) is True
    with pytest.raises(CancelledError):
        second.result(0)


def test_fork_waits_for_calls_under_way_and_holds_new_ones_back() -> None:
    gate, order = ForkGate(patience_s=10), []
    entered, leave = threading.Event(), threading.Event()

    def call(name: str) -> None:
        with gate:
            entered.set()
            leave.wait(10)
            order.append(name)

    def fork() -> None:
        gate.before_fork()
        order.append("fork")
        time.sleep(0.05)
        order.append("forked")
        gate.after_fork_in_parent()

    first, forking, second = (
        threading.Thread(target=call, args=("first",)),
        threading.Thread(target=fork),
        threading.Thread(target=call, args=("second",)),
    )
    first.start()
    entered.wait(10)
    forking.start()
    time.sleep(0.05)
    second.start()
    time.sleep(0.05)
    leave.set()
    for thread in (first, forking, second):
        thread.join(10)
    assert order == ["first", "fork", "forked", "second"]


def test_fork_that_waits_in_vain_takes_its_chance() -> None:
    gate = ForkGate(patience_s=0.1)
    with gate:
        started = time.monotonic()
        gate.before_fork()
        assert 0.1 <= time.monotonic() - started < 2
        gate.after_fork_in_parent()
