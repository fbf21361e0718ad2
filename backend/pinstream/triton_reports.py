"""What the plugin tells of itself in Triton's log and metrics. Used by model.py; knows Triton's Python API."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from pinstream.metrics import Recorder


def _make_metric(name: str, kind: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Any:
    found = getattr(pb_utils.MetricFamily, kind.upper(), None)
    if found is None:  # no histograms before August 2024
        return None
    family = _FAMILIES.setdefault(name, pb_utils.MetricFamily(name=name, description=description, kind=found))
    return family.Metric(labels=dict(labels), **({"buckets": list(buckets)} if buckets else {}))


# A family must outlive its series.
_FAMILIES: dict[str, Any] = {}


def recorder(args: dict[str, str], device: str) -> Recorder | None:
    """Records into Triton's metrics, or nothing where the server was started without them."""
    labels = {"model": args["model_name"], "version": args["model_version"], "device": device}
    try:
        return Recorder(_make_metric, labels)
    except pb_utils.TritonModelException as error:
        pb_utils.Logger.log_info(f"[pinstream] no metrics: {error}")
        return None


class _TritonHandler(logging.Handler):
    """Puts pinstream's log records into Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        triton = pb_utils.Logger
        levels = {logging.ERROR: triton.log_error, logging.WARNING: triton.log_warn, logging.INFO: triton.log_info}
        levels.get(record.levelno, triton.log_verbose)(f"[pinstream] {record.getMessage()}")


def log_to_triton() -> None:
    """Have pinstream's own log records come out in Triton's log."""
    logger = logging.getLogger("pinstream")
    if not logger.handlers:
        logger.addHandler(_TritonHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
