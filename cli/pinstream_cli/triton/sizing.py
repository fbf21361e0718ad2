"""Instances and queues of the YOLOX service's steps for this machine. The repository's own are for two cores."""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

# Instances that share an engine: with few of them requests wait for an instance and not for the GPU.
DETECTORS_ON_GPU = 8
# Seconds that a request waits before it is refused. On a CPU a large network takes as long for a few images.
PATIENCE_ON_GPU_S = 1
# Seconds in which the detector has begun to read what the first step left for it: what it waits in the queue, and for
# batches that run. What clients leave behind in between is free ten seconds later. On a CPU a batch may take seconds.
READ_WITHIN, READ_WITHIN_ON_GPU_S = "READ_WITHIN_S", 5
# Requests that wait before the next one is refused at once: what is done in less than the seconds that one may wait, on
# a CPU of a small network, beside a GPU of decoding. Were they more, what is too much would be refused that late, and
# decoded for those who have left meanwhile.
WAITING_PER_CORE, WAITING_AT_LEAST = 16, 64
# The step before which the service queues, and the one with the network.
FIRST_STEP, DETECTOR = "yolox_preprocess", "yolox_detector"


def instances(cores: int, gpu: bool) -> dict[str, int]:
    """How many instances each step gets.

    Where a GPU computes, the CPU's work is mostly decoding. So every core may decode; what Triton, gathering and
    answering need goes before (NICENESS in yolox_preprocess). With a quarter more instances than cores, at twice the
    load, 0.96 instead of 0.92 of the peak was answered. A detector that answers what it was handed
    before it takes more (no EXECUTIONS) takes the least of the CPU for a picture, which is what limits the service
    (benchmarks/HISTORY.md). Otherwise the detector itself needs the cores.

    Args:
        cores: That this process may use.
        gpu: Whether the detector runs on one.
    """
    if not gpu:
        return {"yolox_preprocess": max(2, cores // 4), "yolox_detector": 2, "yolox_postprocess": max(1, cores // 16)}
    return {
        "yolox_preprocess": max(2, cores + cores // 4),
        DETECTOR: max(2, min(DETECTORS_ON_GPU, cores // 2)),
        "yolox_postprocess": max(1, cores // 5),
    }


def waiting(cores: int) -> int:
    """How many requests wait before the next one is refused at once.

    Args:
        cores: That this process may use.
    """
    return max(WAITING_AT_LEAST, WAITING_PER_CORE * cores)


def plain_config() -> str:
    """The configuration of an ONNX model that nobody has written one for.

    Two instances, since Triton 2.51 looks at a limited queue again after half a second where a request came while every
    instance was busy: with one, that is often. The model's speed is not known, so that no time is set; nor may clients
    set one, for which Triton would need one by default, and that would keep `pinstream tune` from trying a delay.
    """
    limit = waiting(len(os.sched_getaffinity(0)))
    return (
        'backend: "pinstream"\ninstance_group [ { count: 2 } ]\n'
        f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {limit} }} }}\n"
    )


def size_service(repository: Path, gpu: bool) -> None:
    """Write counts and limits on what waits into the service's configurations in `repository`, which must be a copy."""
    cores = len(os.sched_getaffinity(0))
    for model, count in instances(cores, gpu).items():
        file = repository / model / "config.pbtxt"
        config = text_format.Parse(file.read_text(), ModelConfig())
        config.instance_group[0].count = count
        policy = config.dynamic_batching.default_queue_policy
        if gpu and policy.default_timeout_microseconds:
            policy.default_timeout_microseconds = PATIENCE_ON_GPU_S * 1_000_000
        if model == FIRST_STEP and policy.max_queue_size:
            policy.max_queue_size = waiting(cores)
        if model == FIRST_STEP and gpu:
            config.parameters[READ_WITHIN].string_value = str(READ_WITHIN_ON_GPU_S)
        file.write_text(text_format.MessageToString(config))
