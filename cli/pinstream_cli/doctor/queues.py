"""Limits on what waits for a model with which Triton's dynamic batcher gives it less work than it can do.

Why, and by how much: docs/configuration.md, benchmarks/queue_full.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pinstream_cli.doctor.backends import ENSEMBLE, backend_of
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.repository import CONFIG, Model

NAME = "queue"
TWO_BY_THEMSELVES = frozenset({"onnxruntime", "tensorflow"})
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
    groups = [group for group in config.instance_group if not group.passive]
    if not config.instance_group:
        # Triton's core makes two of some backends where there is no GPU.
        return gpus or (2 if backend_of(config) in TWO_BY_THEMSELVES else 1)
    return sum(max(1, group.count) * _places(group, gpus) for group in groups)


def _places(group: Any, gpus: int) -> int:
    """GPUs that a group has its count on; a group that is not for GPUs has one place."""
    return len(group.gpus) or gpus or 1 if group.kind in (group.KIND_GPU, group.KIND_AUTO) else 1
