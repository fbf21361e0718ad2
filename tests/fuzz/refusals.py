"""Requests that Triton refuses itself, each in words of its own: random ones seldom come upon all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2

_PIXELS: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8]}
_DATA = [0.5] * 192
# A length beside chunks, which take none: to be sent in one piece, as no client does.
TWO_LENGTHS = (
    b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
)


@dataclass(frozen=True)
class Refused:
    """A request to the model `classifier` over HTTP.

    Attributes:
        body: Its body.
        words: What the answer says.
        headers: Beside that of JSON.
    """

    body: bytes
    words: str
    headers: Mapping[str, str] = field(default_factory=dict)


def over_http() -> Iterator[Refused]:
    """Bodies that lie about their tensors, and parameters of another kind."""
    head = json.dumps({"inputs": [{**_PIXELS, "parameters": {"binary_data_size": 768}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    yield Refused(head + bytes(700), "expecting 68 additional bytes", length)
    yield Refused(head + bytes(800), "unexpected additional input data", length)
    reserved = {"inputs": [{**_PIXELS, "data": _DATA}], "parameters": {"triton_own": 1}}
    yield Refused(json.dumps(reserved).encode(), "parameter keys starting with 'triton_' are reserved")
    region = {"shared_memory_region": "none", "shared_memory_byte_size": 768}
    unknown = {"inputs": [{**_PIXELS, "parameters": region}]}
    yield Refused(json.dumps(unknown).encode(), "Unable to find shared memory region")
    for dtype in ("FP16", "BF16"):
        whole = {"inputs": [{**_PIXELS, "datatype": dtype, "data": _DATA}]}
        yield Refused(json.dumps(whole).encode(), f"receiving {dtype} data via JSON is not supported")
    for count in (-1, "x"):
        output = {"name": "probabilities", "parameters": {"classification": count}}
        whole = {"inputs": [{**_PIXELS, "data": _DATA}], "outputs": [output]}
        yield Refused(json.dumps(whole).encode(), "Unable to set 'classification'")


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

    def reserved(whole: Any) -> None:
        whole.parameters["triton_own"].int64_param = 1
        whole.raw_input_contents.append(bytes(768))

    def unknown_region(whole: Any) -> None:
        whole.inputs[0].parameters["shared_memory_region"].string_param = "none"
        whole.inputs[0].parameters["shared_memory_byte_size"].int64_param = 768

    yield request(reserved), "parameter keys starting with 'triton_' are reserved"
    yield request(unknown_region), "Unable to find shared memory region"
    yield request(other_list), "unexpected explicit tensor data"
    yield request(lambda whole: None), "unable to find data for input tensor"
    yield request(negative_version), "invalid model version specified"
    yield request(negative_priority), "invalid value for 'priority'"
