"""Several connections of one instance to its engine's process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pinstream.engines import is_shared
from pinstream.errors import ConfigError
from pinstream.options import Options
from pinstream.shared import wire


def test_an_engine_that_answers_has_not_gone_whoever_reads_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton asks whether it is ready in one thread, while others wait for answers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        monkeypatch.setattr(wire, "is_readable", lambda channel: True)  # as it was a moment ago
        assert not wire.has_gone(ours)
        theirs.close()
        assert wire.has_gone(ours)


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
