"""Small requests, right and wrong, over and over: whatever they leave in memory is a leak.

What a large request takes stays with a process, so that beside such ones nothing is told by what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.fuzz.beside import PATIENCE_S, server_mib, stubs
from tests.fuzz.pictures import corpus
from tests.server.running import Running

GOOD = ("classifier", "yolox", "executions")
# By so much MiB the stubs together, or tritonserver, may grow after the first fifth of the requests.
GROWTH_MIB = 20.0


def good_request(model: str, content: bytes = b"") -> Any:
    """A request that is answered; with other bytes in its tensor where some are given."""
    request = service_pb2.ModelInferRequest(model_name=model)
    if model == "yolox":
        picture = content or corpus()[0]
        request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    elif model == "executions":
        request.inputs.add(name="row", datatype="FP32", shape=[2, 5])
        request.raw_input_contents.append(content or bytes(40))
    else:
        request.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
        request.raw_input_contents.append(content or bytes(768))
    return request


def _requests() -> Iterator[tuple[Any, str]]:
    """Good requests, as many that a model itself refuses or fails with, and the statuses that they end with."""
    for model in GOOD:
        yield good_request(model), "OK"
    yield good_request("yolox", b"no picture"), "INVALID_ARGUMENT"
    nonsense = good_request("yolox")
    nonsense.parameters["conf"].double_param = 7.0
    yield nonsense, "INVALID_ARGUMENT"
    fails = good_request("executions", bytes(4 * 13))
    fails.inputs[0].shape[:] = [1, 13]
    yield fails, "INTERNAL"


def steady(server: Running, count: int) -> tuple[dict[str, float], list[str]]:
    """Send `count` requests, half of them good, one after the other.

    Returns:
        By how many MiB the stubs and tritonserver grew after the first fifth, and what was wrong, in words.
    """
    requests = cycle(_requests())
    faults: list[str] = []
    with grpc.insecure_channel(server.grpc_url) as channel:
        send = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        def send_next(number: int) -> None:
            for request, wanted in islice(requests, number):
                call = send.future(request, timeout=PATIENCE_S)
                if call.code().name != wanted:
                    faults.append(f"{request.model_name}: {call.code().name} instead of {wanted}: {call.details()}")

        send_next(count // 5)
        before = _held(server)
        send_next(count - count // 5)
    grown = {name: round(mib - before[name], 1) for name, mib in _held(server).items()}
    grows = [f"memory of {name} grows by {mib} MiB" for name, mib in grown.items() if mib > GROWTH_MIB]
    return grown, [*faults[:20], *grows]


def _held(server: Running) -> dict[str, float]:
    return {"stubs": sum(stubs(server).values()), "tritonserver": server_mib(server)}
