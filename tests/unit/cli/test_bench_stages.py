"""The backend's stages, read off a metrics page as Triton writes it."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from pinstream_cli.benchmark.stages import StageTimes

PAGE = """\
# HELP pinstream_gather_duration_us gather of a batch, us
# TYPE pinstream_gather_duration_us histogram
pinstream_gather_duration_us_count{{model="detector",version="1",device="gpu0"}} {count}
pinstream_gather_duration_us_sum{{model="detector",version="1",device="gpu0"}} {total}
pinstream_gather_duration_us_bucket{{model="detector",version="1",device="gpu0",le="10"}} 1
pinstream_gather_duration_us_count{{model="other",version="1",device="gpu0"}} 1000
pinstream_gather_duration_us_sum{{model="other",version="1",device="gpu0"}} 9e9
pinstream_compute_duration_us_count{{model="detector",version="1",device="gpu0"}} 3
pinstream_compute_duration_us_sum{{model="detector",version="1",device="gpu0"}} 33000
"""


def test_means_are_of_what_happened_in_between() -> None:
    before = StageTimes.of(PAGE.format(count=10, total=5000), "detector")
    after = StageTimes.of(PAGE.format(count=14, total=7000.5), "detector")
    assert after.means_since(before) == pytest.approx({"gather": 0.500125})


def test_a_model_without_metrics_has_no_stages() -> None:
    nothing = StageTimes.of(PAGE.format(count=10, total=5000), "empty")
    assert nothing.means_since(nothing) == {}
    assert StageTimes({}).means_since(nothing) == {}


def test_steps_of_an_ensemble_take_what_a_request_waits_and_is_worked_on() -> None:
    def statistics(requests: int) -> service_pb2.InferStatistics:
        def took(ms: int) -> service_pb2.StatisticDuration:
            return service_pb2.StatisticDuration(count=requests, ns=requests * ms * 1_000_000)

        return service_pb2.InferStatistics(
            success=took(9), queue=took(3), compute_input=took(1), compute_infer=took(4), compute_output=took(2)
        )

    before, after = (StageTimes.of_steps({"decode": statistics(n), "detect": statistics(2 * n)}) for n in (10, 15))
    assert after.means_since(before) == {"decode, waiting": 3.0, "decode": 7.0, "detect, waiting": 3.0, "detect": 7.0}
