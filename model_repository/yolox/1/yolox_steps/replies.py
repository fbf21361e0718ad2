"""Triton's side that both steps share: configuration parameters, and one response for every request."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from yolox_steps.errors import RequestError


def config_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """The `parameters` of a model configuration, by name."""
    return {name: str(entry["string_value"]) for name, entry in config.get("parameters", {}).items()}


def reply_to_each(requests: Iterable[Any], step: Callable[[Any], list[Any]]) -> list[Any]:
    """Answers every request of a batch by itself, so that none suffers from another.

    Args:
        requests: The requests that Triton gathered, each with a batch dimension of its own.
        step: Makes one request's output tensors. What it raises becomes that request's error: RequestError
            INVALID_ARGUMENT, anything else INTERNAL, with the traceback in the server's log and not in the reply.
    """
    return [_reply(request, step) for request in requests]


def _reply(request: Any, step: Callable[[Any], list[Any]]) -> Any:
    try:
        return pb_utils.InferenceResponse(step(request))
    except RequestError as error:
        return _error(str(error), pb_utils.TritonError.INVALID_ARG)
    except UnicodeDecodeError:
        # HTTP hands over what a client sent; only when it is looked at does it turn out to be no text.
        return _error("a parameter's name or value is not UTF-8; send text", pb_utils.TritonError.INVALID_ARG)
    except Exception as error:
        pb_utils.Logger.log_error(f"request {_id(request)}: {traceback.format_exc()}")
        return _error(f"internal error, {type(error).__name__}; see the server's log", pb_utils.TritonError.INTERNAL)


def _id(request: Any) -> str:
    """A request's id for the log, which its client chose."""
    try:
        return repr(request.request_id())
    except UnicodeDecodeError:
        return "of no UTF-8"


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
