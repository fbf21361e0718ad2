"""A service that is measured takes tensors alone, completed or not; nothing else of it changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.completion import complete_service
from pinstream_cli.triton.measured import take_tensors
from pinstream_cli.triton.sizing import DETECTOR
from pinstream_cli.yolox_service import build_service
from tests.yolox_exports import Export


def read(repository: Path) -> dict[str, ModelConfig]:
    files = repository.glob("*/config.pbtxt")
    return {file.parent.name: text_format.Parse(file.read_text(), ModelConfig()) for file in files}


@pytest.mark.parametrize("completed", [False, True])
def test_steps_hand_on_tensors(tmp_path: Path, completed: bool) -> None:
    repository = shutil.copytree(service_repository(), tmp_path / "models")
    if completed:
        build_service(Export().save(tmp_path / "tiny.onnx"), repository / DETECTOR / "1")
        assert complete_service(repository, DETECTOR)
    before = read(repository)
    take_tensors(repository)
    after = read(repository)
    first, second = after["yolox"].ensemble_scheduling.step[:2]
    assert first.output_map == {"images": "images_at", "letterbox": "letterbox"}
    assert second.input_map == {"images": "images_at"}
    detector = after[DETECTOR]
    assert "BY_REFERENCE" not in detector.parameters
    assert [(tensor.name, tensor.optional) for tensor in detector.input] == [("images", False)] * completed
    for name in after.keys() - {"yolox", DETECTOR}:
        assert after[name] == before[name]
