"""The service's instances fit the machine, and only their counts are changed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.measured import lift_limits
from pinstream_cli.triton.sizing import (
    FIRST_STEP,
    PATIENCE_ON_GPU_S,
    READ_WITHIN,
    READ_WITHIN_ON_GPU_S,
    instances,
    plain_config,
    size_service,
    waiting,
)

ROOT = Path(__file__).parents[3]
STEPS = ["yolox_preprocess", "yolox_detector", "yolox_postprocess"]


def read(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def test_two_cores_without_a_gpu_are_what_the_repository_is_written_for() -> None:
    written = {model: read(service_repository(), model).instance_group[0].count or 1 for model in STEPS}
    assert instances(2, gpu=False) == written


@pytest.mark.parametrize("cores", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("gpu", [False, True])
def test_every_step_has_instances_and_they_never_shrink_with_the_machine(cores: int, gpu: bool) -> None:
    assert all(count >= 1 for count in instances(cores, gpu).values())
    assert all(instances(2 * cores, gpu)[model] >= count for model, count in instances(cores, gpu).items())


def test_readme_has_the_counts_of_a_machine_with_a_gpu() -> None:
    rows = re.findall(r"\| `model_repository/(\w+)/config.pbtxt` \|[^|]*\| (\d+) \|", (ROOT / "README.md").read_text())
    assert {model: int(count) for model, count in rows} == instances(16, gpu=True)


@pytest.mark.parametrize("gpu", [False, True])
def test_nothing_but_the_counts_and_waiting_times_changes(tmp_path: Path, gpu: bool) -> None:
    repository = shutil.copytree(service_repository(), tmp_path / "models")
    before = {model: read(repository, model) for model in STEPS}
    size_service(repository, gpu)
    for model in STEPS:
        after = read(repository, model)
        assert after.instance_group[0].count >= 1
        after.instance_group[0].count = before[model].instance_group[0].count
        policies = [config.dynamic_batching.default_queue_policy for config in (before[model], after)]
        waits, patience = (policy.default_timeout_microseconds for policy in policies)
        assert patience == (min(waits, PATIENCE_ON_GPU_S * 1_000_000) if gpu else waits)
        if gpu and model == FIRST_STEP:
            assert after.parameters[READ_WITHIN].string_value == str(READ_WITHIN_ON_GPU_S)
            assert READ_WITHIN_ON_GPU_S > 2 * PATIENCE_ON_GPU_S
            after.parameters[READ_WITHIN].CopyFrom(before[model].parameters[READ_WITHIN])
        if waits:
            policies[1].default_timeout_microseconds = waits
            policies[1].max_queue_size = policies[0].max_queue_size
        assert after == before[model]


def test_where_whatever_is_sent_waits_pictures_are_waited_for_as_long_as_can_be(tmp_path: Path) -> None:
    repository = shutil.copytree(service_repository(), tmp_path / "models")
    size_service(repository, gpu=True)
    lift_limits(repository)
    for model in STEPS:
        config = read(repository, model)
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert READ_WITHIN not in config.parameters


def test_as_many_wait_as_the_machine_does_in_about_a_second(tmp_path: Path) -> None:
    assert read(service_repository(), FIRST_STEP).dynamic_batching.default_queue_policy.max_queue_size == waiting(2)
    assert [waiting(cores) for cores in (1, 2, 4, 16, 64)] == [64, 64, 64, 256, 1024]
    for gpu in (False, True):
        repository = shutil.copytree(service_repository(), tmp_path / str(gpu))
        size_service(repository, gpu)
        policy = read(repository, FIRST_STEP).dynamic_batching.default_queue_policy
        assert policy.max_queue_size == waiting(len(os.sched_getaffinity(0)))


def test_an_onnx_model_that_nobody_configured_has_a_limit_and_instances_that_make_it_cheap() -> None:
    config = text_format.Parse(plain_config(), ModelConfig())
    assert config.dynamic_batching.default_queue_policy.max_queue_size == waiting(len(os.sched_getaffinity(0)))
    # With one instance a limit costs up to half a second; a delay beside a timeout stalls the batcher.
    assert config.instance_group[0].count > 1
    assert not config.dynamic_batching.max_queue_delay_microseconds


@pytest.mark.parametrize("model", ["yolox_preprocess", "yolox_detector"])
def test_where_requests_wait_their_number_and_time_is_limited(model: str) -> None:
    policy = read(service_repository(), model).dynamic_batching.default_queue_policy
    # Less than the 10 s after which the client gives up.
    assert 0 < policy.default_timeout_microseconds < 10_000_000
    assert policy.max_queue_size
    assert policy.timeout_action == policy.REJECT
