"""Instances and queues of the YOLOX service's steps for this machine. The repository's own are for two cores."""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

# Instances that share an engine. One answers all that it was handed before it takes more, so with few of them requests
# wait for an instance and not for the GPU.
DETECTORS_ON_GPU = 16
# Seconds that a request waits before it is refused. On a CPU a large network takes as long for a few images.
PATIENCE_ON_GPU_S = 1


def instances(cores: int, gpu: bool) -> dict[str, int]:
    """How many instances each step gets.

    Where a GPU computes, the CPU's work is mostly decoding. So every core may decode; what Triton, gathering and
    answering need goes before (NICENESS in yolox_preprocess). Otherwise the detector itself needs the cores.

    Args:
        cores: That this process may use.
        gpu: Whether the detector runs on one.
    """
    if not gpu:
        return {"yolox_preprocess": max(2, cores // 4), "yolox_detector": 2, "yolox_postprocess": max(1, cores // 16)}
    return {
        "yolox_preprocess": max(2, cores),
        "yolox_detector": max(2, min(DETECTORS_ON_GPU, cores)),
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
