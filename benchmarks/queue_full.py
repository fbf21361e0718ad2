"""What a limit on Triton's queue costs while it is full, by the number of instances.

    python -m benchmarks.queue_full --out benchmarks/results/queue-full-cpu.json

The model does nothing but wait, so that its instances take no cores from each other or from Triton. Requests come at
random times, twice as many as its instances can answer.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import InferenceServerClient, service_pb2

from benchmarks.arrivals import poisson_arrivals
from benchmarks.outcome import about, write
from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints

COMPUTE_S = 0.04
MODEL = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        time.sleep({COMPUTE_S})
        zeros = pb_utils.Tensor("y", np.zeros((1, 4), np.float32))
        return [pb_utils.InferenceResponse([zeros]) for _ in requests]
"""
CONFIG = """backend: "python"
max_batch_size: {batch}
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ 4 ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ 4 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: {count} }} ]
dynamic_batching {{ {limit} }}
"""
LIMIT = "default_queue_policy { max_queue_size: 64 }"
# By instances and batch size: what they answer twice of is no more than a client in Python sends beside a server on two
# cores, some 900 a second.
KINDS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 8))
REPETITIONS, SECONDS, FILLING_S, SEED = 3, 8.0, 2.0, 1


def make_repository(repository: Path) -> dict[str, tuple[int, int, bool]]:
    """A model for each number of instances and each batch size, with and without a limit; gives what each has."""
    made = {}
    for count, batch in KINDS:
        for limited in (False, True):
            name = f"instances{count}_batch{batch}_{'limited' if limited else 'unlimited'}"
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "1" / "model.py").write_text(MODEL)
            config = CONFIG.format(batch=batch, count=count, limit=LIMIT if limited else "")
            (repository / name / "config.pbtxt").write_text(config)
            made[name] = (count, batch, limited)
    return made


def executions(client: InferenceServerClient, model: str) -> int:
    """Batches that the model has run."""
    return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def measure(url: str, model: str, count: int, batch: int, rng: random.Random) -> tuple[float, float]:
    """The share of the time in which the instances compute while twice as much comes, and how many come a second."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    rate = 2 * count * batch / COMPUTE_S
    client = InferenceServerClient(url)
    counts: list[tuple[float, int]] = []

    def look() -> None:
        counts.append((time.perf_counter(), executions(client, model)))

    looks = [threading.Timer(after, look) for after in (FILLING_S, SECONDS)]
    with grpc.insecure_channel(url) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        )
        for timer in looks:
            timer.start()
        calls: list[Any] = []
        began = time.perf_counter()
        for _ in poisson_arrivals(rate, SECONDS + 0.5, rng):
            # Kept, since gRPC cancels a call that nobody refers to any more.
            calls.append(infer.future(request, timeout=60))
        sent = len(calls) / (time.perf_counter() - began)
        for timer in looks:
            timer.join()
    (since, before), (until, after) = counts
    return (after - before) * COMPUTE_S / (count * (until - since)), sent


def main() -> None:
    """Measure it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    endpoints = Endpoints.free()
    rng = random.Random(SEED)
    shares: dict[str, list[float]] = {}
    paces: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        models = make_repository(Path(directory))
        console = Console(file=io.StringIO())
        with serving(None, repositories=[Path(directory)], endpoints=endpoints, console=console):
            for repetition in range(REPETITIONS):
                for model, (count, batch, _) in models.items():
                    busy, sent = measure(endpoints.grpc_url, model, count, batch, rng)
                    shares.setdefault(model, []).append(busy)
                    paces.setdefault(model, []).append(sent)
                    print(f"{repetition} {model}: {busy:.2f} busy, {sent:.0f} sent a second", flush=True)
    rows: list[dict[str, Any]] = [
        {
            "instances": count,
            "batch": batch,
            "limited": limited,
            "sent_per_s": round(statistics.median(paces[model]), 1),
            "busy": round(statistics.median(shares[model]), 3),
            "windows": [round(share, 3) for share in shares[model]],
        }
        for model, (count, batch, limited) in models.items()
    ]
    report = {
        **about(),
        "compute_ms": COMPUTE_S * 1e3,
        "rows": rows,
    }
    write(report, given.out)


if __name__ == "__main__":
    main()
