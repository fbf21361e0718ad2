"""The service's instances fit the machine, and only their counts are changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.sizing import instances, size_service

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


def test_nothing_but_the_counts_changes(tmp_path: Path) -> None:
    repository = shutil.copytree(service_repository(), tmp_path / "models")
    before = {model: read(repository, model) for model in STEPS}
    size_service(repository, gpu=True)
    for model in STEPS:
        after = read(repository, model)
        assert after.instance_group[0].count >= 1
        after.instance_group[0].count = before[model].instance_group[0].count
        assert after == before[model]
