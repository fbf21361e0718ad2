"""Triton's refusals, word for word as a Triton 2.51 gives them, as typed errors of one line."""

import pytest

from pinstream_client import InvalidRequest, ModelNotFound, PinstreamError, ServerError, ServerNotReady
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
