"""Requests whose senders give up while they wait cost the GPU nothing, whether instances share an engine or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import onnx_models
from tests.giving_up import CONFIG, MODEL, give_up_in_a_batch, give_up_while_waiting
from tests.gpu.conftest import BuildPlan
from tests.gpu.serving import parameters, place
from tests.server.conftest import ONE_LINE
from tests.server.running import running

EXECUTIONS, BATCH = 3, 2
# 17 GFLOP five hundred times are some ten milliseconds on an H100.
SIZE, WORK = 2048, 500
ON_A_GPU = "instance_group { kind: KIND_GPU }\n"


@pytest.mark.parametrize("how", [{}, {"EXECUTIONS": str(EXECUTIONS)}], ids=["own", "executions"])
def test_who_gives_up_while_waiting_costs_the_gpu_nothing(
    build: BuildPlan, tmp_path: Path, how: dict[str, str]
) -> None:
    onnx = onnx_models.heavy(tmp_path / "heavy.onnx", SIZE, WORK)
    place(
        build(onnx, batch_sizes=(1, 2)),
        tmp_path / "repository",
        MODEL,
        ONE_LINE + CONFIG + ON_A_GPU + parameters(**how),
    )
    with running(repositories=[tmp_path / "repository"]) as server:
        give_up_while_waiting(server, EXECUTIONS * BATCH)


def test_who_gives_up_before_its_batch_has_begun_is_left_out_of_it(build: BuildPlan, tmp_path: Path) -> None:
    onnx = onnx_models.heavy(tmp_path / "heavy.onnx", SIZE, WORK)
    config = "max_batch_size: 16\ndynamic_batching { }\n" + parameters(SLOTS="2", SHARE_ENGINE="off")
    place(build(onnx, batch_sizes=(1, 2)), tmp_path / "repository", MODEL, ONE_LINE + config + ON_A_GPU)
    with running(repositories=[tmp_path / "repository"]) as server:
        give_up_in_a_batch(server, most=16, give_up=4)
