"""Cancelled calls end at once, and the server hears of them.

What is cancelled here waits at the server, or has only just begun. Of a call that is cancelled at the moment its answer
is there Triton 2.51 crashes (docs/errors.md).
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pytest

from pinstream_client import AsyncDetector, Cancelled, Detections, Detector
from tests.server.client.conftest import TIMEOUT_S, url_of
from tests.server.conftest import add_model
from tests.server.running import Running, running

SLOW_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "image" data_type: TYPE_STRING dims: 1 }
output { name: "num_dets" data_type: TYPE_INT32 dims: 1 }
output { name: "det_boxes" data_type: TYPE_FP32 dims: [ -1, 4 ] }
output { name: "det_scores" data_type: TYPE_FP32 dims: -1 }
output { name: "det_classes" data_type: TYPE_INT32 dims: -1 }
dynamic_batching { }
instance_group { count: 1 kind: KIND_CPU }
"""
# Takes as many seconds as `conf` says, whatever else the machine does, and finds one object of that score.
SLOW_MODEL = """
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.find(json.loads(request.parameters())["conf"])) for request in requests]

    def find(self, conf):
        time.sleep(conf)
        num_dets, boxes = np.ones((1, 1), np.int32), np.ones((1, 1, 4), np.float32)
        found = dict(num_dets=num_dets, det_boxes=boxes, det_scores=boxes[..., 0] * conf, det_classes=num_dets)
        return [pb_utils.Tensor(name, np.float32(v) if v.dtype.kind == "f" else v) for name, v in found.items()]
"""
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(64)
MANY = 30
LONG, SHORT = 0.9, 0.01
# Calls behind that under way that Triton has given to the instance, and does not drop any more.
PREFETCHED = 2


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that does one call at a time."""
    repository = tmp_path_factory.mktemp("slow")
    add_model(repository, "yolox", SLOW_CONFIG).with_name("model.py").write_text(SLOW_MODEL)
    with running(repositories=[repository]) as server:
        yield server


def metric(server: Running, line_begins: str) -> float:
    """The sum of a metric over the lines that begin so."""
    text = urllib.request.urlopen(server.metrics_url).read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(line_begins))


def cancelled_at(server: Running) -> float:
    """How many requests the server counts as cancelled."""
    return metric(server, 'nv_inference_request_failure{model="yolox",reason="CANCELED"')


class Call(Protocol):
    """A task or a future."""

    def done(self) -> bool: ...


def wait_for_waiting(server: Running, count: int, behind: Sequence[Call] = ()) -> None:
    """Until so many requests wait at the server for the model, behind calls that it works at one after the other."""

    def all_wait() -> bool:
        # Of the calls before them one is worked at, and the others wait, too.
        others = max(0, sum(not call.done() for call in behind) - 1)
        return metric(server, 'nv_inference_pending_request_count{model="yolox"') >= count + others

    assert soon(all_wait)


def soon(what: Callable[[], bool], patience_s: float = 10.0) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def score(found: Detections) -> float:
    return round(float(found.scores[0]), 4)


def test_cancelled_futures_end_at_once_and_others_are_answered(slow: Running, protocol: str) -> None:
    before = cancelled_at(slow)
    with Detector(url_of(slow, protocol), timeout=TIMEOUT_S) as detector:
        assert score(detector.detect(PICTURE, conf=SHORT)) == SHORT
        busy = [detector.submit(PICTURE, conf=LONG) for _ in range(3)]
        wait_for_waiting(slow, len(busy) - 1)
        others = {number / 100: detector.submit(PICTURE, conf=number / 100) for number in range(1, 6)}
        calls = [detector.submit(PICTURE, conf=SHORT) for _ in range(MANY)]
        wait_for_waiting(slow, len(others) + MANY, busy)
        assert all(call.cancel() for call in calls)
        assert all(isinstance(call.exception(5), Cancelled) for call in calls)
        assert not busy[-1].done(), "they ended only as the server came to them"
        for conf, call in others.items():
            assert score(call.result()) == conf
            assert not call.cancel()
    if protocol == "grpc":
        assert soon(lambda: cancelled_at(slow) == before + MANY)


def test_cancelled_tasks_reach_the_server(slow: Running) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(slow, "grpc"), timeout=TIMEOUT_S) as detector:
            busy = [asyncio.create_task(detector.detect(PICTURE, conf=LONG)) for _ in range(3)]
            await asyncio.to_thread(wait_for_waiting, slow, len(busy) - 1)
            tasks = [asyncio.create_task(detector.detect(PICTURE, conf=SHORT)) for _ in range(MANY)]
            await asyncio.to_thread(wait_for_waiting, slow, len(tasks), busy)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
            assert not busy[-1].done(), "they ended only as the server came to them"
            assert [score(found) for found in await asyncio.gather(*busy)] == [LONG] * len(busy)

    before = cancelled_at(slow)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(slow) == before + MANY)


def test_a_stream_that_is_left_cancels_what_is_on_its_way(slow: Running) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(slow, "grpc"), timeout=TIMEOUT_S) as detector:
            await detector.detect(PICTURE, conf=SHORT)
            stream = detector.stream([PICTURE] * 300, conf=LONG, in_flight=MANY)
            await anext(stream)
            await asyncio.to_thread(wait_for_waiting, slow, MANY // 2)
            started = time.monotonic()
            await stream.aclose()  # type: ignore[attr-defined]
            assert time.monotonic() - started < 2
            assert score(await detector.detect(PICTURE, conf=SHORT)) == SHORT

    before = cancelled_at(slow)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(slow) >= before + MANY // 2 - PREFETCHED)
