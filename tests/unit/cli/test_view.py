"""Who may use the page, and what it reads out of Triton's metrics."""

from __future__ import annotations

import pytest

from pinstream_cli.view.guard import refused
from pinstream_cli.view.metrics import Gpu, read_metrics

# Lines of a server with one GPU, as Triton writes them.
METRICS = """\
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="yolox",reason="OTHER",version="1"} 3
nv_inference_request_failure{model="yolox",reason="REJECTED",version="1"} 1
nv_inference_request_failure{model="yolox_detector",reason="OTHER",version="1"} 9
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="yolox",version="1"} 80
nv_inference_count{model="yolox_detector",version="1"} 81
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="yolox_detector",version="1"} 27
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="yolox_preprocess",version="1"} 2
nv_inference_pending_request_count{model="yolox_detector",version="1"} 5
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.5
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 150754820096
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1153433600
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25
"""


def test_metrics_of_the_model_its_detector_and_the_machine() -> None:
    found = read_metrics(METRICS, "yolox", "yolox_detector")
    assert (found.failures, found.pending, found.items, found.executions) == (4, 7, 81, 27)
    assert (found.cpu, found.memory_used, found.memory_total) == (0.25, None, None)
    assert found.gpus == (Gpu("GPU-a", 0.5, 1153433600, 150754820096, None),)
    assert found.to_dict()["gpus"][0]["uuid"] == "GPU-a"


def test_a_server_without_metrics_of_its_own_has_zeros_and_nothing() -> None:
    found = read_metrics("", "yolox", "yolox_detector")
    assert (found.failures, found.executions, found.cpu, found.gpus) == (0, 0, None, ())


def test_what_is_no_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        read_metrics("<html>{ no metrics", "yolox", "yolox_detector")


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost:8080", "http://localhost:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", "http://127.0.0.1:8080", False),
        ("localhost:8080", "https://localhost:8080", False),
        ("localhost:8080", "null", False),
        ("localhost:8080", "", False),
        ("localhost", None, True),
        ("localhost:9000", "http://localhost:9000", True),
        ("localhost:9000", "http://localhost:3000", False),
        ("localhost:808011", None, False),
        ("localhost:8080\n", None, False),
        ("evil.example", None, False),
        ("evil.example:8080", "http://evil.example:8080", False),
        ("localhost.example:8080", None, False),
        ("", None, False),
    ],
)
def test_only_this_machine_and_only_the_page_itself(host: str, origin: str | None, allowed: bool) -> None:
    assert (refused(host, origin) == "") == allowed
