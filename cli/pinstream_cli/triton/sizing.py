"""Instances and queues of the YOLOX service's steps for this machine. The repository's own are for two cores."""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

# Measured on an H200 with 16 cores, YOLOX-m FP16: 4 instances that share an engine keep the GPU busy, 8 add nothing.
DETECTORS_ON_GPU = 4
# Seconds that a request waits before it is refused. On a CPU a large network takes as long for a few images.
PATIENCE_ON_GPU_S = 1


def instances(cores: int, gpu: bool) -> dict[str, int]:
    """How many instances each step gets.

    Where a GPU computes, the CPU's work is decoding (3.5 ms an image of 768 x 576, against 0.35 ms on an H200), so most
    cores decode; the rest is for Triton, gathering and answering. Otherwise the detector itself needs the cores.

    Args:
        cores: That this process may use.
        gpu: Whether the detector runs on one.
    """
    if not gpu:
        return {"yolox_preprocess": max(2, cores // 4), "yolox_detector": 2, "yolox_postprocess": max(1, cores // 16)}
    return {
        "yolox_preprocess": max(2, cores * 3 // 4),
        "yolox_detector": DETECTORS_ON_GPU,
        "yolox_postprocess": max(1, cores // 5),
    }


def size_service(repository: Path, gpu: bool) -> None:
    """Write counts and waiting times into the service's configurations in `repository`, which must be a copy."""
    for model, count in instances(len(os.sched_getaffinity(0)), gpu).items():
        file = repository / model / "config.pbtxt"
        config = text_format.Parse(file.read_text(), ModelConfig())
        config.instance_group[0].count = count
        policy = config.dynamic_batching.default_queue_policy
        if gpu and policy.default_timeout_microseconds:
            policy.default_timeout_microseconds = PATIENCE_ON_GPU_S * 1_000_000
        file.write_text(text_format.MessageToString(config))
