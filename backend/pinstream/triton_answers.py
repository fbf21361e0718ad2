"""What Triton's answers are made of, and how they are sent. Used by model.py; knows Triton's Python API."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from pinstream.errors import InvalidRequest, NoLongerThere, PinstreamError


def refusal(text: str, code: Any) -> Any:
    """A response with an error, of one of the codes of pb_utils.TritonError."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def refused(error: InvalidRequest | NoLongerThere) -> Any:
    """The response to a request that is wrong, or that may be right if it is sent again."""
    codes = pb_utils.TritonError
    return refusal(str(error), codes.INVALID_ARG if isinstance(error, InvalidRequest) else codes.UNAVAILABLE)


def unexpected(error: Exception) -> Any:
    """A response with an error that nobody foresaw."""
    # The traceback is for the server's log; the client gets what it can act on.
    pb_utils.Logger.log_error(f"[pinstream] {''.join(traceback.format_exception(error))}")
    text = str(error) if isinstance(error, PinstreamError) else f"internal error ({type(error).__name__})"
    return refusal(f"{text}; see the server's log", pb_utils.TritonError.INTERNAL)


def have_parameters() -> bool:
    """Whether this Triton lets a response carry parameters (2025-01 and later)."""
    try:
        pb_utils.InferenceResponse([], parameters={})
    except TypeError:
        return False
    return True


def senders_of(requests: Sequence[Any]) -> list[Any] | None:
    """What sends each request's answer; None where this Triton takes answers from execute only (before mid-2024)."""
    try:
        senders = [request.get_response_sender() for request in requests]
    except pb_utils.TritonModelException:
        return None
    return None if None in senders else senders


def send(senders: Sequence[Any], responses: Sequence[Any], instance: str) -> None:
    """Send each request's one answer; `instance` is named where one cannot be sent."""
    for sender, response in zip(senders, responses, strict=True):
        try:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # the others are to be answered all the same
            # Triton takes nothing more for it. Where /dev/shm had no room its client waits for good, unless the server
            # is started again: `pinstream serve` looks for the mark.
            mark = "LOST " if "shared memory" in str(error) else ""
            pb_utils.Logger.log_error(f"[pinstream] {mark}{instance}: an answer could not be sent: {error}")
