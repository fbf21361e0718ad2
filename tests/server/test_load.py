"""The short form of the load: more than the service can do, from clients of whom some give up."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.sizing import waiting
from tests import onnx_models
from tests.load import LEAST_GOODPUT, LONGEST_BACK_S, MOST_COMPUTED, PICTURE, SHAPES, STATUSES, Service, load, quantile
from tests.server.running import running


def waiting_s() -> float:
    """Seconds that a request may wait in the service's queue."""
    text = (service_repository() / "yolox_preprocess" / "config.pbtxt").read_text()
    policy = text_format.Parse(text, ModelConfig()).dynamic_batching.default_queue_policy
    return float(policy.default_timeout_microseconds / 1e6)


def test_what_is_too_much_is_refused_in_time_and_the_rest_is_done() -> None:
    report = load(SHAPES, PICTURE, seconds=9, factor=3, peak_s=2)
    assert report["by_status"].keys() <= STATUSES, report
    assert report["by_status"]["UNAVAILABLE"] > 0, report
    assert report["by_status"]["DEADLINE_EXCEEDED"] <= report["gave_up"], report
    # Refusals are quick, and it is soon as it was before. Who is refused has not waited for its turn: beside other
    # tests a refusal may take much of a second all the same; the long form, which has the machine for itself, allows
    # no more than the time of an answer when idle.
    assert report["milliseconds"]["refused"]["p50"] <= report["milliseconds"]["answered"]["p50"] / 2, report
    assert report["back_to_idle_s"] <= LONGEST_BACK_S, report
    # Other tests take half of the machine in one of these seconds and nothing in the next: what it does in a second is
    # no measure then (0.69 to 0.98 of the peak were seen), what it does with a second of CPU time is, to a tenth or so
    # (0.89 to 1.06). Among the few images of nine seconds those count that were asked for to see whether it is idle.
    assert report["goodput_of_peak_per_cpu_second"] > LEAST_GOODPUT - 0.1, report
    assert report["computed_of_answered"] < MOST_COMPUTED + 0.1, report
    assert report["milliseconds"]["refused"]["p100"] < (waiting_s() + 6) * 1000, report
    assert report["milliseconds"]["answered"]["p99"] < (waiting_s() + 8) * 1000, report


def test_what_is_too_much_for_a_plain_model_is_refused_at_once(tmp_path: Path) -> None:
    sent = 40 + waiting(len(os.sched_getaffinity(0)))
    request = service_pb2.ModelInferRequest(model_name="slow")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 512, 512])
    request.raw_input_contents.append(bytes(4 * 512 * 512))
    took: dict[str, list[float]] = {"OK": [], "UNAVAILABLE": []}
    with (
        running(onnx_models.slow(tmp_path / "slow.onnx", work=15)) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request, timeout=60)

        def send() -> Future[None]:
            began, ended = time.perf_counter(), Future[None]()

            def note(call: Any) -> None:
                took[call.code().name].append(time.perf_counter() - began)
                ended.set_result(None)

            stub.ModelInfer.future(request, timeout=60).add_done_callback(note)
            return ended

        for ended in [send() for _ in range(sent)]:
            ended.result(60)
    assert len(took["OK"]) + len(took["UNAVAILABLE"]) == sent
    assert took["UNAVAILABLE"]
    assert max(took["UNAVAILABLE"]) < max(took["OK"]), took
    assert quantile(took["UNAVAILABLE"], 0.5) < quantile(took["OK"], 0.5), took


def test_a_server_that_ended_under_load_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with running(onnx_models.classifier(tmp_path / "classifier.onnx")) as server:
        service = Service(server)
        service.require_running()
        os.kill(server.server.pid, signal.SIGKILL)
        server.server.wait(30)
        with pytest.raises(SystemExit, match=r"(?s)Triton ended with code -9 .*Started Metrics Service"):
            service.require_running()
