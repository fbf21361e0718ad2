"""Limits on what waits for a model with which Triton's dynamic batcher gives it less work than it can do.

Why, and by how much: docs/configuration.md, benchmarks/queue_full.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from pinstream_cli.doctor.backends import ENSEMBLE, backend_of
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.repository import CONFIG, Model

NAME = "queue"
# Of these Triton's core makes two on a CPU where no count is given.
TWO_ON_A_CPU = frozenset({"onnxruntime", "tensorflow"})
MANUAL = "docs/configuration.md, More than a model can do"


def check_queues(area: str, model: Model, gpus: int) -> Iterator[Check]:
    """What is loaded all the same, and slow once there is much to do.

    Args:
        area: What the checks belong to.
        model: The model.
        gpus: GPUs of this machine.
    """
    if backend_of(model.config) == ENSEMBLE:
        return
    batching = model.config.dynamic_batching
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    timed = any(policy.default_timeout_microseconds for policy in policies)
    if timed and batching.max_queue_delay_microseconds:
        found = "default_timeout_microseconds with max_queue_delay_microseconds: Triton up to July 2026 loses count of"
        yield Check(area, NAME, "WARN", f"{found} free instances until there are none", f"leave one out ({MANUAL})")
    limited = timed or any(policy.max_queue_size for policy in policies)
    if limited and _instances(model.config, gpus) == 1:
        found = "a limit and one instance, of which Triton does not see that it is free while the queue is full"
        remedy = f"write instance_group [ {{ count: 2 }} ], or more, into {CONFIG} ({MANUAL})"
        yield Check(area, NAME, "WARN", found, remedy)


def _instances(config: Any, gpus: int) -> int:
    """How many instances Triton makes."""
    groups = [group for group in config.instance_group or [ModelInstanceGroup()] if not group.passive]
    return sum(_count(group, backend_of(config), gpus) for group in groups)


def _count(group: Any, backend: str, gpus: int) -> int:
    if gpus and group.kind in (group.KIND_GPU, group.KIND_AUTO):
        return max(1, int(group.count)) * (len(group.gpus) or gpus)
    on_cpu = group.kind in (group.KIND_CPU, group.KIND_AUTO)
    return int(group.count) or (2 if on_cpu and backend in TWO_ON_A_CPU else 1)
