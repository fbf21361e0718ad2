"""Inference requests whose names, ids and parameters are any bytes: no UTF-8, megabytes, what others trip over.

Triton's `classification` parameter of an output is left out: of an output of strings it ends Triton 2.51
(docs/security.md).
"""

from __future__ import annotations

import json
import random
from typing import Any

from tritonclient.grpc import service_pb2

# Stands in a request for what it is replaced by: no encoder would write those bytes.
_MARK = "MARK%02dMARK"
_PLAIN = (
    b"",
    b" ",
    b"\xff",
    b"\xc3\x28\xf0\x9f",
    b"\0\1\x7f",
    "ü\u202e€😀".encode(),
    b"%s%n%d{}{0}$(id)`id`",
    b"../../../etc/passwd",
    b"-1e400",
    b"null",
)
_LONG = (1 << 12, 1 << 16, 1 << 21)
_PARAMETERS = ("conf", "iou", "max_det", "timeout", "priority", "sequence_id", "sequence_start", "headers")
_OUTPUT_PARAMETERS = ("binary_data", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "other")
# Of `generate`: models, a tensor of each, and a value that it takes; no picture is text.
_TENSORS = (("text", "in", ["a", "b", "c"]), ("dynamic_width", "row", [0.5, 1.5]), ("yolox", "image", "a"))
_OUTPUTS = ("num_dets", "det_boxes", "class_names", "probabilities", "other")


def any_text(rng: random.Random) -> bytes:
    """Bytes where a text belongs."""
    if rng.random() < 0.2:
        return rng.choice((b"x", b"\xff", "é".encode())) * rng.choice(_LONG)
    return rng.choice(_PLAIN) if rng.random() < 0.8 else rng.randbytes(rng.choice((1, 8, 200)))


def http_body(rng: random.Random) -> bytes:
    """A request as HTTP has it."""
    texts: list[bytes] = []

    def text(usual: str, odds: float) -> str:
        if rng.random() > odds:
            return usual
        texts.append(any_text(rng).replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
        return _MARK % (len(texts) - 1)

    def value() -> Any:
        return rng.choice((text("0.5", 1), text("0.5", 1), 1, -1, 0.5, True, 2**63, None, [], {}))

    image = {"name": text("image", 0.2), "datatype": text("BYTES", 0.1), "shape": [1, 1], "data": [text("x", 0.5)]}
    body: dict[str, Any] = {"inputs": [image]}
    if rng.random() < 0.5:
        body["id"] = text("id", 1)
    if rng.random() < 0.7:
        body["parameters"] = {text(rng.choice(_PARAMETERS), 0.4): value() for _ in range(rng.choice((1, 1, 3)))}
    if rng.random() < 0.5:
        output: dict[str, Any] = {"name": text(rng.choice(_OUTPUTS), 0.3)}
        if rng.random() < 0.7:
            output["parameters"] = {text(rng.choice(_OUTPUT_PARAMETERS), 0.3): value()}
        body["outputs"] = [output]
    return _filled(json.dumps(body, ensure_ascii=False).encode(), texts)


def generate_request(rng: random.Random) -> tuple[str, bytes]:
    """A model, and a request of `generate`: its tensor by its name, with a value or a list, and some parameters."""
    values: tuple[Any, ...] = (0, -1, 0.5, 2**63, 10**30, True, None, "", "a", "é" * 50, [], {}, [[1]])
    model, tensor, right = rng.choice(_TENSORS)
    body: dict[str, Any] = {tensor: right}
    for name in (tensor, "id", "conf", "parameters", "stream", "x" * 200):
        if rng.random() < 0.2:
            count = rng.choice((0, 1, 3, 300))
            several = rng.choices(values, k=count) if rng.random() < 0.5 else [rng.choice(values)] * count
            body[name] = rng.choice((rng.choice(values), several, {"conf": rng.choice(values)}))
    return model if rng.random() < 0.9 else "none", json.dumps(body).encode()


def grpc_message(rng: random.Random) -> bytes:
    """A ModelInferRequest as it travels: lengths of texts are counted, their bytes need be no text."""
    request = service_pb2.ModelInferRequest(model_name="yolox")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\1\0\0\0x")
    # An error that repeats the longest of these is too long for gRPC: it would tell nothing of who made it.
    name = rng.choice((b"\xff", b"x", b"x", b"\0")) * rng.choice((1, 9, 3_000, 70_000))
    where = rng.choice(("id", "parameter", "value", "output", "output parameter", "output value", "input"))
    mark = "M" * len(name)
    if where == "id":
        request.id = mark
    elif where == "parameter":
        request.parameters[mark].double_param = 0.5
    elif where == "value":
        request.parameters[rng.choice(_PARAMETERS)].string_param = mark
    elif where == "input":
        request.inputs[0].name = mark
    else:
        output = request.outputs.add(name=mark if where == "output" else rng.choice(_OUTPUTS))
        if where == "output parameter":
            output.parameters[mark].string_param = "x" * rng.choice((1, 70_000))
        elif where == "output value":
            output.parameters[rng.choice(_OUTPUT_PARAMETERS)].string_param = mark
    return bytes(request.SerializeToString()).replace(mark.encode(), name)


def _filled(body: bytes, texts: list[bytes]) -> bytes:
    for number, text in enumerate(texts):
        body = body.replace((_MARK % number).encode(), text)
    return body
