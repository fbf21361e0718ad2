"""Where the time goes, as the server counts it: Triton's inference statistics between two moments.

The counters belong to the server, so requests of other clients in between are averaged in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Counter:
    """How often something happened and how long it took in total."""

    count: int = 0
    ns: int = 0

    def __add__(self, other: Counter) -> Counter:
        return Counter(self.count + other.count, self.ns + other.ns)

    def __sub__(self, other: Counter) -> Counter:
        return Counter(self.count - other.count, self.ns - other.ns)

    @property
    def mean_ms(self) -> float:
        """Milliseconds each; 0 when it never happened."""
        return self.ns / self.count / _NS_PER_MS if self.count else 0.0


STAGES = ("success", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ModelTiming:
    """Averages per request of one model, in milliseconds.

    In a batch each request counts the whole batch's compute time. An ensemble's stages are the sums of its steps'.
    """

    model: str
    requests: int
    total_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float

    @property
    def compute_ms(self) -> float:
        """The three compute stages together."""
        return self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms

    def to_dict(self) -> Json:
        """Plain Python values."""
        return {
            "model": self.model,
            "requests": self.requests,
            "total_ms": round(self.total_ms, 3),
            "queue_ms": round(self.queue_ms, 3),
            "compute_input_ms": round(self.compute_input_ms, 3),
            "compute_infer_ms": round(self.compute_infer_ms, 3),
            "compute_output_ms": round(self.compute_output_ms, 3),
        }


@dataclass(frozen=True)
class Statistics:
    """A snapshot of the server's counters: model -> stage -> counter, in the order of the ensemble's steps."""

    models: dict[str, dict[str, Counter]]

    def __add__(self, other: Statistics) -> Statistics:
        """Those of two servers together, of the models of this one."""
        return Statistics(
            {
                model: {stage: counter + other.models[model][stage] for stage, counter in stages.items()}
                for model, stages in self.models.items()
            }
        )

    def since(self, earlier: Statistics) -> tuple[ModelTiming, ...]:
        """Averages of what happened between ``earlier`` and this snapshot, the ensemble first, then its steps."""
        return tuple(_timing(model, stages, earlier.models.get(model, {})) for model, stages in self.models.items())


def read_statistics(answer: Json, models: Iterable[str]) -> Statistics:
    """Reads Triton's statistics answer.

    Args:
        answer: ``{"model_stats": [...]}`` of either protocol; gRPC leaves zeros out and writes numbers as text.
        models: The models to keep, in this order. A model's versions are summed.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: It is not Triton's.
    """
    by_model: dict[str, dict[str, Counter]] = {model: dict.fromkeys(STAGES, Counter()) for model in models}
    for entry in answer.get("model_stats", []):
        stages = by_model.get(entry["name"])
        if stages is None:
            continue
        counters = entry.get("inference_stats", {})
        for stage in STAGES:
            duration = counters.get(stage, {})
            stages[stage] += Counter(_number(duration.get("count", 0)), _number(duration.get("ns", 0)))
    return Statistics(by_model)


def _number(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"a counter of {number:.3g}: Triton's have 64 bits")
    return number


def ensemble_models(model: str, config: Json) -> tuple[str, ...]:
    """The model itself, then the models of its ensemble steps as its configuration names them."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return tuple(dict.fromkeys((model, *(step["model_name"] for step in steps))))


def _timing(model: str, now: dict[str, Counter], before: dict[str, Counter]) -> ModelTiming:
    delta = {stage: counter - before.get(stage, Counter()) for stage, counter in now.items()}
    if any(counter.count < 0 or counter.ns < 0 for counter in delta.values()):
        delta = now  # the server was started anew in between
    return ModelTiming(model, delta["success"].count, *(delta[stage].mean_ms for stage in STAGES))
