"""What stages take: the backend's own, out of the histograms on the server's metrics page, and an ensemble's steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pinstream.metrics import STAGES

_SUM_OR_COUNT = re.compile(r"^pinstream_(\w+)_duration_us_(sum|count)\{([^}]*)\} (\S+)$", re.MULTILINE)
US_PER_MS, NS_PER_US = 1000.0, 1000.0
# What a step's stage is called in which requests wait in Triton's queue for it; the other one has the step's own name.
WAITING = "{}, waiting"


@dataclass(frozen=True)
class StageTimes:
    """Totals since a model was loaded.

    Attributes:
        totals: Microseconds and number of batches by stage; or of requests, by step.
    """

    totals: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, page: str, model: str) -> StageTimes:
        """Read a metrics page in Prometheus's text format; nothing where the model has no such metrics."""
        sums = {"sum": dict.fromkeys(STAGES, 0.0), "count": dict.fromkeys(STAGES, 0.0)}
        for stage, kind, labels, value in _SUM_OR_COUNT.findall(page):
            if f'model="{model}"' in labels and stage in STAGES:
                sums[kind][stage] += float(value)
        return cls({stage: (sums["sum"][stage], sums["count"][stage]) for stage in STAGES})

    @classmethod
    def of_steps(cls, statistics: Mapping[str, Any]) -> StageTimes:
        """An ensemble's steps, by Triton's clocks.

        Args:
            statistics: Triton's inference_stats of each step's model, by its name, in their order.
        """
        totals = {}
        for step, stats in statistics.items():
            computing = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            totals[WAITING.format(step)] = (stats.queue.ns / NS_PER_US, float(stats.success.count))
            totals[step] = (computing / NS_PER_US, float(stats.success.count))
        return cls(totals)

    def means_since(self, earlier: StageTimes) -> dict[str, float]:
        """Mean milliseconds of a batch's or a request's stages in between; stages that did not happen are left out."""
        means = {}
        for stage, (total, count) in self.totals.items():
            total_before, count_before = earlier.totals.get(stage, (0.0, 0.0))
            if count > count_before:
                means[stage] = (total - total_before) / (count - count_before) / US_PER_MS
        return means
