"""Requests whose senders give up or are wrong, among others: at an instance with one batch under way, or with two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests import onnx_models
from tests.giving_up import CONFIG, MODEL, PATIENCE_S, give_up_in_a_batch, give_up_while_waiting, request_of
from tests.gpu.serving import parameters
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running

EXECUTIONS, BATCH = 2, 2


@contextlib.contextmanager
def serving_heavy(directory: pytest.TempPathFactory, config: str) -> Iterator[Running]:
    repository = directory.mktemp("heavy")
    onnx_models.heavy(add_model(repository, MODEL, ONE_LINE + config), size=512, work=40)
    with running(repositories=[repository]) as started:
        yield started


@pytest.mark.parametrize("how", [{}, {"SHARE_ENGINE": "on", "EXECUTIONS": str(EXECUTIONS)}], ids=["one", "two"])
def test_who_gives_up_while_waiting_costs_nothing_and_who_is_wrong_is_told_so(
    tmp_path_factory: pytest.TempPathFactory, how: dict[str, str]
) -> None:
    with serving_heavy(tmp_path_factory, CONFIG + parameters(**how)) as server:
        give_up_while_waiting(server, EXECUTIONS * BATCH)


def test_who_gives_up_before_its_batch_has_begun_is_left_out_of_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = "max_batch_size: 16\ndynamic_batching { }\n" + parameters(BUCKETS="1,2", SLOTS="2")
    with serving_heavy(tmp_path_factory, config) as server:
        give_up_in_a_batch(server, most=16, give_up=4)


def inference_ms(server: Running, requests: int) -> float:
    """Milliseconds that a lone request takes its instance, by Triton's account, after so many of them."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def account() -> tuple[int, int]:
            (model,) = triton.ModelStatistics(service_pb2.ModelStatisticsRequest(name=MODEL)).model_stats
            return model.inference_stats.compute_infer.ns, model.inference_stats.compute_infer.count

        def send(count: int) -> None:
            for _ in range(count):
                triton.ModelInfer(request_of([1, 1, 1]), timeout=PATIENCE_S)

        send(requests)
        before = account()
        send(4)
        ns, count = (after - earlier for after, earlier in zip(account(), before, strict=True))
        return ns / count / 1e6


@pytest.mark.parametrize(("instances", "waits"), [(2, True), (1, False)])
def test_an_instance_waits_for_a_lone_request_where_others_take_what_comes_meanwhile(
    tmp_path_factory: pytest.TempPathFactory, instances: int, waits: bool
) -> None:
    config = f"max_batch_size: 2\ninstance_group {{ count: {instances} kind: KIND_CPU }}\n"
    with serving_heavy(tmp_path_factory, config + parameters(SHARE_ENGINE="on", EXECUTIONS="2")) as server:
        # Each of an instance's executions has been told by then.
        assert (inference_ms(server, requests=3 * instances * EXECUTIONS) > 10) is waits
