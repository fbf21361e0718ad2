"""Triton's refusals, word for word as a Triton 2.51 gives them, as typed errors of one line."""

import pickle

import pytest

from pinstream_client import (
    DeadlineExceeded,
    InvalidRequest,
    InvalidURL,
    MissingExtra,
    ModelNotFound,
    PinstreamError,
    ServerError,
    ServerNotReady,
)
from pinstream_client.errors import deadline_exceeded, first_line, from_status, unreachable

CRASH = (
    "in ensemble 'yolox', Failed to process the request(s) for model 'yolox_preprocess_0_0', message: "
    "ValueError: boom\n"
    "second line\n\nAt:\n  /models/yolox_preprocess/1/model.py(10): execute\n"
)


@pytest.mark.parametrize(
    ("code", "text", "kind", "words"),
    [
        ("INVALID_ARGUMENT", "in ensemble 'yolox', no image: found 4 bytes", InvalidRequest, "no image: found 4 bytes"),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotFound, "no model 'm'"),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ServerNotReady, "not ready"),
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", ServerNotReady, "maximum queue size"),
        ("INTERNAL", CRASH, ServerError, "ValueError: boom"),
        ("HTTP 500", CRASH, ServerError, "ValueError: boom"),
        ("UNKNOWN", "", ServerError, "no reason given"),
    ],
)
def test_status_becomes_the_type_that_tells_what_to_do(
    code: str, text: str, kind: type[PinstreamError], words: str
) -> None:
    error = from_status(code, text, "grpc://localhost:8001", "m")
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)
    for noise in ("At:", "model.py", "second line", "in ensemble", "request id"):
        assert noise not in str(error)


def test_message_is_one_line_that_does_nothing_to_a_terminal() -> None:
    error = PinstreamError("no file 'a\x1b[2J\n\u202e\ud800\x9b'\r: été\u00a0\u3000 ok")
    assert str(error) == r"no file 'a\x1b[2J\n\u202e\ud800\x9b'\r: été" + "\u00a0\u3000 ok"
    assert str(MissingExtra("a\x07")) == str(InvalidURL("a\x07")) == str(DeadlineExceeded("a\x07")) == r"a\x07"
    assert repr(pickle.loads(pickle.dumps(error))) == repr(error)
    assert str(PinstreamError()) == ""


def test_message_keeps_its_beginning_and_its_end_however_long_it_is() -> None:
    message = str(from_status("INTERNAL", "x" * 1_000_000, "grpc://h:1", "m"))
    assert len(message) < 5000
    assert message.startswith("the server at grpc://h:1 failed (INTERNAL): xxx")
    assert message.endswith("xxx; the server's log has the details")


def test_standard_types_are_there_for_those_who_catch_them() -> None:
    assert isinstance(deadline_exceeded("http://h:1", 1), TimeoutError)
    assert issubclass(InvalidRequest, ValueError)
    assert isinstance(unreachable("http://h:1", "Connection refused"), PinstreamError)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9994, "1 s"), (10.0, "10 s"), (2.5, "2.5 s"), (0.01, "0.01 s"), (0.0032, "0.003 s"), (120, "120 s")],
)
def test_deadline_says_the_seconds_as_the_user_gave_them(seconds: float, text: str) -> None:
    assert f"within {text}:" in str(deadline_exceeded("http://h:1", seconds))


def test_first_line_of_nothing_is_something() -> None:
    assert first_line(" \n ") == "no reason given"
