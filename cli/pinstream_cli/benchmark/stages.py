"""What the backend's own stages take, out of the histograms that it keeps on the server's metrics page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pinstream.metrics import STAGES

_SUM_OR_COUNT = re.compile(r"^pinstream_(\w+)_duration_us_(sum|count)\{([^}]*)\} (\S+)$", re.MULTILINE)
US_PER_MS = 1000.0


@dataclass(frozen=True)
class StageTimes:
    """Totals since a model was loaded.

    Attributes:
        totals: Microseconds and number of batches by stage.
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

    def means_since(self, earlier: StageTimes) -> dict[str, float]:
        """Mean milliseconds of a batch's stages in between; stages that did not happen are left out."""
        means = {}
        for stage, (total, count) in self.totals.items():
            total_before, count_before = earlier.totals.get(stage, (0.0, 0.0))
            if count > count_before:
                means[stage] = (total - total_before) / (count - count_before) / US_PER_MS
        return means
