"""What a limit on Triton's queue costs where nothing is refused, by the number of instances.

    python -m benchmarks.queue_limits --model models/shapes_nano.onnx --out benchmarks/results/queue-limits-cpu.json

Requests come at random times, at a part of what one after the other would take all of the time.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, service_pb2

from benchmarks.arrivals import poisson_arrivals
from benchmarks.outcome import about, write
from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints

LIMIT = "dynamic_batching { default_queue_policy { max_queue_size: 64 } }\n"
TWO = "instance_group [ { count: 2 } ]\n"
SUBJECTS = {"one": "", "one_limited": LIMIT, "two": TWO, "two_limited": TWO + LIMIT}
PARTS = (0.1, 0.4, 0.8)
REPETITIONS, SECONDS, SEED = 3, 8.0, 1

Call = Callable[..., Any]


def make_repository(model: Path, repository: Path) -> None:
    """The same model under each configuration."""
    for name, config in SUBJECTS.items():
        (repository / name / "1").mkdir(parents=True)
        shutil.copy(model, repository / name / "1" / "model.onnx")
        (repository / name / "config.pbtxt").write_text('backend: "pinstream"\n' + config)


def request_for(client: InferenceServerClient, model: str) -> bytes:
    """One item of zeros."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for given in client.get_model_metadata(model).inputs:
        shape = [1, *(int(size) for size in given.shape[1:])]
        request.inputs.add(name=given.name, datatype=given.datatype, shape=shape)
        item = {"FP32": 4, "UINT8": 1}[given.datatype]
        request.raw_input_contents.append(bytes(math.prod(shape) * item))
    return bytes(request.SerializeToString())


def alone_s(infer: Call, request: bytes) -> float:
    """Seconds of a request that comes alone."""
    took = []
    for _ in range(60):
        began = time.perf_counter()
        infer(request)
        took.append(time.perf_counter() - began)
    return statistics.median(took[10:])


def at_random(infer: Call, request: bytes, rate: float, rng: random.Random) -> list[float]:
    """Milliseconds of requests of which `rate` come a second."""
    took: list[float] = []
    sent = 0
    for _ in poisson_arrivals(rate, SECONDS, rng):
        at = time.perf_counter()
        infer.future(request).add_done_callback(lambda _, at=at: took.append((time.perf_counter() - at) * 1e3))  # type: ignore[attr-defined]
        sent += 1
    while len(took) < sent:
        time.sleep(0.02)
    return took


def rows(infer: Call, requests: dict[str, bytes]) -> list[dict[str, Any]]:
    """Each subject at each pace, in turn and over again."""
    alone = alone_s(infer, requests["one"])
    rng = random.Random(SEED)
    found = []
    for repetition in range(REPETITIONS):
        for part in PARTS:
            for subject, request in requests.items():
                took = at_random(infer, request, part / alone, rng)
                quantiles = {f"p{q}_ms": round(float(np.quantile(took, q / 100)), 1) for q in (50, 90, 99, 100)}
                found.append({"subject": subject, "part": part, "repetition": repetition, "n": len(took), **quantiles})
                print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Measure it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    endpoints = Endpoints.free()
    console = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as directory:
        make_repository(given.model, Path(directory))
        with serving(None, repositories=[Path(directory)], endpoints=endpoints, console=console):
            client = InferenceServerClient(endpoints.grpc_url)
            requests = {name: request_for(client, name) for name in SUBJECTS}
            with grpc.insecure_channel(endpoints.grpc_url) as channel:
                infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                found = rows(infer, requests)
    report = {
        **about(),
        "subjects": SUBJECTS,
        "rows": found,
    }
    write(report, given.out)


if __name__ == "__main__":
    main()
