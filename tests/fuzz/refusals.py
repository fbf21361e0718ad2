"""Requests that Triton refuses itself, each in words of its own: random ones seldom come upon all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

_PIXELS: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8]}
_DATA = [0.5] * 192


@dataclass(frozen=True)
class Refused:
    """A request to the model `classifier` over HTTP.

    Attributes:
        body: Its body.
        json_length: Bytes of it that are JSON, where not all are.
        words: What the answer says.
    """

    body: bytes
    json_length: int | None
    words: str


def over_http() -> Iterator[Refused]:
    """Bodies that lie about their tensors, and parameters of another kind."""
    head = json.dumps({"inputs": [{**_PIXELS, "parameters": {"binary_data_size": 768}}]}).encode()
    yield Refused(head + bytes(700), len(head), "expecting 68 additional bytes")
    yield Refused(head + bytes(800), len(head), "unexpected additional input data")
    for dtype in ("FP16", "BF16"):
        whole = {"inputs": [{**_PIXELS, "datatype": dtype, "data": _DATA}]}
        yield Refused(json.dumps(whole).encode(), None, f"receiving {dtype} data via JSON is not supported")
    for count in (-1, "x"):
        output = {"name": "probabilities", "parameters": {"classification": count}}
        whole = {"inputs": [{**_PIXELS, "data": _DATA}], "outputs": [output]}
        yield Refused(json.dumps(whole).encode(), None, "Unable to set 'classification'")


def over_grpc() -> Iterator[tuple[Any, str]]:
    """Requests, and what the answer says."""

    def request(change: Callable[[Any], None]) -> Any:
        whole = service_pb2.ModelInferRequest(model_name="classifier")
        whole.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
        change(whole)
        return whole

    def other_list(whole: Any) -> None:
        whole.inputs[0].contents.uint_contents.extend([1] * 192)

    def negative_version(whole: Any) -> None:
        whole.model_version = "-1"
        whole.raw_input_contents.append(bytes(768))

    def negative_priority(whole: Any) -> None:
        whole.parameters["priority"].int64_param = -1
        whole.raw_input_contents.append(bytes(768))

    yield request(other_list), "unexpected explicit tensor data"
    yield request(lambda whole: None), "unable to find data for input tensor"
    yield request(negative_version), "invalid model version specified"
    yield request(negative_priority), "invalid value for 'priority'"
