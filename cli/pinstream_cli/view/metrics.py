"""Triton's metrics, as far as the page shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Gpu:
    """One GPU: shares from 0 to 1, bytes, watts; None for what it does not tell."""

    uuid: str
    utilization: float | None
    memory_used: float | None
    memory_total: float | None
    power_w: float | None


@dataclass(frozen=True)
class Metrics:
    """A moment of a server.

    Attributes:
        failures: Failed requests of the model since the server's start.
        pending: Requests that wait for any of its models.
        items: Images that its detector has run.
        executions: Batches that they were in.
        cpu: Share of the CPU in use, 0 to 1; None when the server does not tell it.
        memory_used: Bytes of host memory in use.
        memory_total: Bytes of host memory.
        gpus: Every GPU.
    """

    failures: float
    pending: float
    items: float
    executions: float
    cpu: float | None
    memory_used: float | None
    memory_total: float | None
    gpus: tuple[Gpu, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)


def read_metrics(text: str, model: str, busiest: str) -> Metrics:
    """Reads Prometheus' text format.

    Args:
        text: What the metrics endpoint said.
        model: The ensemble, whose failures and waiting requests count.
        busiest: The model whose batches are counted.

    Raises:
        ValueError: It is no such text.
    """
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(name: str, **labels: str) -> float:
        # The parser gives a counter's samples the ending that OpenMetrics has and Triton leaves out.
        found = samples.get(name) or samples.get(f"{name}_total") or []
        return sum(value for own, value in found if labels.items() <= own.items())

    def one(name: str, **labels: str) -> float | None:
        values = [value for own, value in samples.get(name, []) if labels.items() <= own.items()]
        return values[0] if values else None

    uuids = sorted(
        {labels["gpu_uuid"] for labels, _ in samples.get("nv_gpu_memory_total_bytes", []) if "gpu_uuid" in labels}
    )
    return Metrics(
        failures=total("nv_inference_request_failure", model=model),
        pending=total("nv_inference_pending_request_count"),
        items=total("nv_inference_count", model=busiest),
        executions=total("nv_inference_exec_count", model=busiest),
        cpu=one("nv_cpu_utilization"),
        memory_used=one("nv_cpu_memory_used_bytes"),
        memory_total=one("nv_cpu_memory_total_bytes"),
        gpus=tuple(
            Gpu(
                uuid,
                one("nv_gpu_utilization", gpu_uuid=uuid),
                one("nv_gpu_memory_used_bytes", gpu_uuid=uuid),
                one("nv_gpu_memory_total_bytes", gpu_uuid=uuid),
                one("nv_gpu_power_usage", gpu_uuid=uuid),
            )
            for uuid in uuids
        ),
    )
