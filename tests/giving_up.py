"""Clients that give up while their requests wait at a real server, among others, and what is computed then."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.server.running import Running
from tests.server.test_plain_models import metrics

MODEL = "heavy"
# A shape that Triton takes by it, and the engine does not: only the backend tells.
CONFIG = 'max_batch_size: 2\ndynamic_batching { }\ninput { name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] }\n'
WAITING, GIVE_UP, WRONG = 12, 10, 2
PATIENCE_S = 60.0


def request_of(shape: list[int]) -> Any:
    """Ones of a shape; the model answers [n, 1, 1] with ones."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
    return request


def computed(server: Running, model: str = MODEL) -> float:
    """Items that a model's engine has run so far, whatever became of them."""
    items = 0.0
    for name, value in metrics(server).items():
        if f'model="{model}"' in name and (bucket := re.match(r'pinstream_batches{.*bucket="(\d+)"', name)):
            items += int(bucket[1]) * value
        if f'model="{model}"' in name and name.startswith("pinstream_padding_items{"):
            items -= value
    return items


def pending(server: Running) -> float:
    """Requests that wait in Triton's queue for the model."""
    return metrics(server).get(f'nv_inference_pending_request_count{{model="{MODEL}",version="1"}}', 0)


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def give_up_while_waiting(server: Running, under_way: int) -> None:
    """Send more than can be done at once, wrong ones among them, and give some up that nothing has begun of.

    Every other request is answered rightly, each wrong one refused, and nothing of what was given up is computed.

    Args:
        server: With the model.
        under_way: The most requests that do not wait in Triton's queue.
    """
    before = computed(server)
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        stay = [infer.future(request_of([1, 1, 1]), timeout=PATIENCE_S) for _ in range(WAITING + under_way)]
        until(lambda: pending(server) >= WAITING)
        wrong = [infer.future(request_of([1, 2, 1]), timeout=PATIENCE_S) for _ in range(WRONG)]
        leave = [infer.future(request_of([1, 1, 1]), timeout=PATIENCE_S) for _ in range(GIVE_UP)]
        sent = [*stay, *wrong, *leave]
        until(lambda: pending(server) + under_way + sum(call.done() for call in sent) >= len(sent))
        assert not stay[-1].done(), "the model is too fast for this test"
        for call in leave:
            call.cancel()
        for call in stay:
            assert np.frombuffer(call.result().raw_output_contents[0], np.float32) == [1.0]
        assert {call.code() for call in leave} == {grpc.StatusCode.CANCELLED}
        assert Counter(call.code() for call in wrong) == {grpc.StatusCode.INVALID_ARGUMENT: WRONG}
        assert all("input 'x' has shape [1, 2, 1]" in call.details() for call in wrong)
    until(lambda: computed(server) - before >= len(stay))
    # Whatever else there was to compute would be counted by now.
    threading.Event().wait(1)
    assert computed(server) - before == len(stay)
    assert pending(server) == 0


def give_up_in_a_batch(server: Running, most: int, give_up: int) -> None:
    """Give up every other one of the last requests of those that an instance has taken at once, for several batches.

    Args:
        server: With the model.
        most: Requests that the instance takes at once: the model's max_batch_size.
        give_up: How many are given up, of twice as many.
    """
    before = computed(server)
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        infer(request_of([1, 1, 1]), timeout=PATIENCE_S)
        # Nothing is merged with it, and the others wait for it.
        full = infer.future(request_of([most, 1, 1]), timeout=PATIENCE_S)
        threading.Event().wait(0.1)
        calls = [infer.future(request_of([1, 1, 1]), timeout=PATIENCE_S) for _ in range(most)]
        full.result()
        until(lambda: pending(server) == 0)
        leave = calls[-1 : -2 * give_up : -2]
        for call in leave:
            call.cancel()
        for call in calls:
            if call not in leave:
                assert np.frombuffer(call.result().raw_output_contents[0], np.float32) == [1.0]
    until(lambda: computed(server) - before > 2 * most - give_up)
    threading.Event().wait(1)
    # One or two may have been in batches that had begun, since requests overtake each other on their way.
    assert computed(server) - before <= 1 + 2 * most - give_up // 2
