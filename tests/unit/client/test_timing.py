"""The time split out of Triton's statistics: numbers over HTTP, text without zeros over gRPC."""

from typing import Any

import pytest

from pinstream_client.timing import ensemble_models, read_statistics


def answer(grpc: bool, count: int, ns: int, name: str = "yolox", version: str = "1") -> dict[str, Any]:
    def duration(factor: int) -> dict[str, Any]:
        values = {"count": count, "ns": ns * factor}
        return {key: str(value) for key, value in values.items() if value} if grpc else values

    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    durations = {stage: duration(index + 1) for index, stage in enumerate(stages)}
    return {
        "name": name,
        "version": version,
        "inference_stats": {"success": duration(10), "fail": duration(0), **durations},
    }


@pytest.mark.parametrize("grpc", [False, True])
def test_averages_between_two_snapshots(grpc: bool) -> None:
    before = read_statistics({"model_stats": [answer(grpc, 10, 4_000_000)]}, ["yolox"])
    after = read_statistics({"model_stats": [answer(grpc, 14, 12_000_000)]}, ["yolox"])
    (timing,) = after.since(before)
    assert (timing.model, timing.requests) == ("yolox", 4)
    assert timing.total_ms == 20.0
    assert (timing.queue_ms, timing.compute_input_ms, timing.compute_infer_ms) == (2.0, 4.0, 6.0)
    assert (timing.compute_output_ms, timing.compute_ms) == (8.0, 18.0)
    assert timing.to_dict()["compute_infer_ms"] == 6.0


@pytest.mark.parametrize("grpc", [False, True])
def test_nothing_in_between_is_zero_and_no_division(grpc: bool) -> None:
    snapshot = read_statistics({"model_stats": [answer(grpc, 0, 0)]}, ["yolox"])
    (timing,) = snapshot.since(snapshot)
    assert (timing.requests, timing.total_ms, timing.compute_ms) == (0, 0.0, 0.0)


def test_models_keep_the_order_of_the_steps_and_versions_are_summed() -> None:
    stats = [
        answer(False, 1, 1_000_000, "b"),
        answer(False, 1, 3_000_000, "b", version="2"),
        answer(False, 5, 1_000_000, "other"),
        answer(False, 2, 1_000_000, "a"),
    ]
    timings = read_statistics({"model_stats": stats}, ["a", "b", "gone"]).since(read_statistics({}, []))
    assert [(timing.model, timing.requests) for timing in timings] == [("a", 2), ("b", 2), ("gone", 0)]
    assert timings[1].queue_ms == 2.0


def test_a_server_that_was_started_anew_counts_from_zero() -> None:
    before = read_statistics({"model_stats": [answer(False, 100, 50_000_000)]}, ["yolox"])
    after = read_statistics({"model_stats": [answer(False, 2, 4_000_000)]}, ["yolox"])
    assert after.since(before)[0].requests == 2
    assert after.since(before)[0].queue_ms == 2.0


def test_steps_of_an_ensemble_each_once() -> None:
    steps = [{"model_name": "pre"}, {"model_name": "detector"}, {"model_name": "pre"}]
    config = {"name": "yolox", "ensemble_scheduling": {"step": steps}}
    assert ensemble_models("yolox", config) == ("yolox", "pre", "detector")
    assert ensemble_models("plain", {"name": "plain"}) == ("plain",)
