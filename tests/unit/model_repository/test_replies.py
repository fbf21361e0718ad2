"""One response per request, whatever happens to its neighbours."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from yolox_steps.errors import RequestError


@dataclass
class TritonError:
    """Triton's error: a text and a code."""

    message: str
    code: str
    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"


@dataclass
class InferenceResponse:
    """Triton's response: tensors or an error."""

    output_tensors: list[Any]
    error: TritonError | None = None


@dataclass
class Logger:
    """Triton's log."""

    lines: list[str] = field(default_factory=list)

    def log_error(self, line: str) -> None:
        """Keeps what was logged."""
        self.lines.append(line)


class Request:
    """As much of a request as a failing one is asked for."""

    def request_id(self) -> str:
        """The client's name for it."""
        return "r7"


@pytest.fixture
def logger() -> Logger:
    return Logger()


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch, logger: Logger) -> Any:
    triton: Any = ModuleType("triton_python_backend_utils")
    triton.TritonError, triton.InferenceResponse, triton.Logger = TritonError, InferenceResponse, logger
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.delitem(sys.modules, "yolox_steps.replies", raising=False)
    module = importlib.import_module("yolox_steps.replies")
    monkeypatch.setitem(sys.modules, "yolox_steps.replies", module)
    return module


def test_neighbours_of_a_failing_request_get_their_results(replies: Any, logger: Logger) -> None:
    refused, broken, good = Request(), Request(), Request()

    def step(request: Request) -> list[str]:
        if request is refused:
            raise RequestError("image 0 of 1: no image")
        if request is broken:
            raise IndexError("secret detail")
        return ["tensor"]

    first, second, third, fourth = replies.reply_to_each([good, refused, broken, good], step)
    assert first == fourth == InferenceResponse(["tensor"])
    assert second == InferenceResponse([], TritonError("image 0 of 1: no image", "INVALID_ARG"))
    assert third.error.code == "INTERNAL"
    assert "IndexError" in third.error.message
    assert "secret detail" not in third.error.message
    assert len(logger.lines) == 1
    assert "'r7'" in logger.lines[0]
    assert "secret detail" in logger.lines[0]


def test_config_parameters_are_flattened(replies: Any) -> None:
    assert replies.config_parameters({"parameters": {"CONF": {"string_value": "0.5"}}}) == {"CONF": "0.5"}
    assert replies.config_parameters({}) == {}
