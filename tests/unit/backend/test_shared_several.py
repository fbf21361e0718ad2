"""Several connections of one instance to its engine's process."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pinstream.engines import is_shared
from pinstream.errors import ConfigError
from pinstream.options import Options
from pinstream.shared import wire


def test_an_engine_has_gone_once_its_last_answer_is_read() -> None:
    """Triton asks whether it is ready in one thread, while others wait for answers, of which it must take none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert not wire.has_gone(ours)
        wire.send(theirs, {"done": 1})
        assert not wire.has_gone(ours)
        theirs.close()
        assert not wire.has_gone(ours)
        assert wire.receive(ours) == ({"done": 1}, None)
        assert wire.has_gone(ours)


def test_messages_of_several_threads_do_not_get_into_each_other() -> None:
    sent = [{"done": i, "error": "x" * (i * 997 % 90_000)} for i in range(200)]
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
    received: list[list[wire.Message | None]] = [[] for _ in pairs]

    def receive(number: int) -> None:
        received[number] += [wire.receive(pairs[number][0])[0] for _ in sent]

    threads = [threading.Thread(target=receive, args=(number,), daemon=True) for number in range(len(pairs))]
    for thread in threads:
        thread.start()
    for _, theirs in pairs:
        theirs.settimeout(10)  # a reader that fails leaves it full
    for message in sent:
        for _, theirs in pairs:
            wire.send(theirs, message)
    for thread in threads:
        thread.join(timeout=30)
    assert received == [sent] * len(pairs)
    for pair in pairs:
        for channel in pair:
            channel.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(executions=4), "set SHARE_ENGINE to on"),
        (Options(executions=4, share_engine="off"), "set SHARE_ENGINE to on"),
        (Options(executions=64, instances=16, share_engine="on"), "lower one of them"),
    ],
)
def test_executions_that_cannot_be_are_refused(options: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        is_shared(Path("model.onnx"), options)
