"""The settings that are tried, and a model's configuration with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pinstream.engines import may_share
from pinstream.options import DEFAULT_GPU_SLOTS, Options
from pinstream.tensors import ModelSpec

# Instances of a model on one GPU, as many as there are cores at most, and batches of requests that each works on at
# once: first what was best where it was measured (docs/performance.md), last what answers a lone request soonest.
GPU_SHARES = ((8, 4), (4, 8), (4, 4), (2, 8), (16, 1), (2, 2), (1, 1))
# The same of instances that have an engine each.
GPU_INSTANCES = (2, 4, 1, 8)
QUEUE_DELAYS_US = (0, 500, 2000)
GPU_SLOTS = (4, 2, 6, 3)


@dataclass(frozen=True)
class Settings:
    """What is tuned; None leaves what the configuration says.

    Attributes:
        instances: Of the model; of each of its instance groups, where it has several.
        delay_us: Longest time that dynamic batching waits for more requests, microseconds.
        buckets: Batch sizes that run.
        executions: Batches of requests that an instance works on at once.
        slots: Batches in flight.
        lanes: ONNX Runtime: batches computed at the same time.
        threads: ONNX Runtime: threads of one batch.
    """

    instances: int | None = None
    delay_us: int | None = None
    buckets: tuple[int, ...] | None = None
    executions: int | None = None
    slots: int | None = None
    lanes: int | None = None
    threads: int | None = None

    def __str__(self) -> str:
        said = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                said.append(f"{LABELS[field.name]} {text}")
        return "; ".join(said) or "as configured"

    def beyond(self, base: Settings) -> Settings:
        """What these change of others that they are made from."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Settings(**{name: value for name, value in values.items() if value != getattr(base, name)})

    def apply(self, config: Any) -> Any:
        """A copy of a ModelConfig message with these settings in it."""
        changed = type(config)()
        changed.CopyFrom(config)
        if self.instances is not None:
            if not changed.instance_group:
                changed.instance_group.add()
            # A group may stand for a GPU of its own.
            for group in changed.instance_group:
                group.count = self.instances
        if self.delay_us is not None:
            changed.dynamic_batching.max_queue_delay_microseconds = self.delay_us
        for key in ("buckets", "executions", "slots", "lanes", "threads"):
            value = getattr(self, key)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                changed.parameters[key.upper()].string_value = text
        return changed


AS_CONFIGURED = Settings()
LABELS = {
    "instances": "instances",
    "delay_us": "queue delay us",
    "buckets": "BUCKETS",
    "executions": "EXECUTIONS",
    "slots": "SLOTS",
    "lanes": "LANES",
    "threads": "THREADS",
}


NOT_DELAYED = (
    "the configuration has default_timeout_microseconds, and with both Triton's batcher loses instances "
    "(docs/configuration.md)"
)


def delay_to_start_from(config: Any) -> int | None:
    """The configured queue delay in microseconds; None where requests are not to be delayed.

    Not where they may wait only so long: with both, Triton's dynamic batcher loses count of the instances that are
    free, by every batch that it merges, until none is given any. Mended in July 2026:
    https://github.com/triton-inference-server/core/pull/509.
    """
    batching = config.dynamic_batching
    if batching.default_queue_policy.default_timeout_microseconds:
        return None
    return int(batching.max_queue_delay_microseconds)


def steps(
    spec: ModelSpec, options: Options, on_gpu: bool, cores: int | None = None, delay_us: int | None = 0
) -> list[list[Mapping[str, Any]]]:
    """What to try, one list after the other: each starts from the best of the list before.

    What is most promising comes first, the lists and what is in each, since time may be up before all of it is tried.
    What is configured is not among it.

    Args:
        spec: The model.
        options: As configured.
        on_gpu: Whether a GPU runs it.
        cores: Of this machine.
        delay_us: As configured; None to try no queue delays. See delay_to_start_from.
    """
    cores = cores or len(os.sched_getaffinity(0))
    shares = _gpu_shares(options, cores) if on_gpu else _cpu_shares(cores)
    slots: list[Mapping[str, Any]] = [{"slots": count} for count in GPU_SLOTS if on_gpu]
    delays: list[Mapping[str, Any]] = [
        {"delay_us": us} for us in QUEUE_DELAYS_US if spec.batch and delay_us is not None
    ]
    choices = (shares, slots, delays, _bucket_choices(spec, options) if on_gpu else [])
    there = _configured(options, on_gpu, delay_us)
    others = [[changes for changes in step if with_changes(there, changes) != there] for step in choices]
    return [step for step in others if step]


def _configured(options: Options, on_gpu: bool, delay_us: int | None) -> Settings:
    """What the configuration comes to; its batch sizes are among no choices."""
    return Settings(
        instances=options.instances,
        delay_us=delay_us,
        executions=options.executions,
        slots=options.slots or (DEFAULT_GPU_SLOTS if on_gpu else None),
        lanes=options.lanes,
        threads=options.threads,
    )


def _gpu_shares(options: Options, cores: int) -> list[Mapping[str, Any]]:
    """Instances, and batches that each works on at once where they may share an engine."""
    if not may_share(options):
        return [{"instances": count} for count in GPU_INSTANCES if count <= cores]
    return [{"instances": count, "executions": each} for count, each in GPU_SHARES if count <= cores]


def _cpu_shares(cores: int) -> list[Mapping[str, Any]]:
    """Ways of sharing the cores among instances, their lanes, and the threads of each."""
    shares: list[Mapping[str, Any]] = []
    for instances in (n for n in (1, 2, 4, 8) if n <= cores):
        for lanes in (n for n in (1, 2, 4, 8) if n * instances <= cores):
            shares.append({"instances": instances, "lanes": lanes, "threads": max(1, cores // (instances * lanes))})
    return shares


def _bucket_choices(spec: ModelSpec, options: Options) -> list[Mapping[str, Any]]:
    """All batch sizes there are but one of them; the largest and the smallest stay."""
    if spec.batch is None or spec.batch.exact or options.buckets or len(spec.batch.buckets) < 3:
        return []
    sizes = spec.batch.buckets
    return [{"buckets": tuple(size for size in sizes if size != left_out)} for left_out in sizes[1:-1]]


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some changed."""
    return replace(settings, **changes)
