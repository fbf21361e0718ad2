"""Where tuning starts: what `pinstream serve` would make of a model, and what is refused before a server is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pinstream.sidecar import Sidecar, write
from pinstream_cli.benchmark.target import Source, locate
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main
from pinstream_cli.triton import RunDirectory, find_triton, sizing
from pinstream_cli.tuning.model import find, how_to_serve, place
from pinstream_cli.tuning.settings import Settings
from tests import onnx_models


def built(directory: Path, file: str, **sections: Any) -> Path:
    """What `pinstream build` leaves, less what is in the model file."""
    directory.mkdir()
    (directory / file).touch()
    write(directory / "model.json", Sidecar("plan", file, "0" * 64, (), (), (), sections))
    return directory


def test_a_plain_model_starts_from_what_serve_makes_of_it(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    with RunDirectory(find_triton(None)) as run:
        run.add_model("classifier", [model])
        text = (run.models / "classifier" / "config.pbtxt").read_text()
    served = text_format.Parse(text, model_config_pb2.ModelConfig())
    tuned = find(model, None, tmp_path)
    assert tuned.config.instance_group == served.instance_group
    assert tuned.config.dynamic_batching == served.dynamic_batching
    assert tuned.config.dynamic_batching.default_queue_policy.max_queue_size > 0


def test_limits_on_queues_are_lifted_while_it_is_measured_and_kept_in_what_is_written(tmp_path: Path) -> None:
    tuned = find(onnx_models.classifier(tmp_path / "classifier.onnx"), None, tmp_path)
    placed = place(tuned, tmp_path / "models")
    assert not placed.config.dynamic_batching.HasField("default_queue_policy")
    assert placed.config.instance_group == tuned.config.instance_group
    written = Settings(delay_us=500).apply(tuned.config)
    assert written.dynamic_batching.default_queue_policy == tuned.config.dynamic_batching.default_queue_policy


def test_limits_that_somebody_wrote_stay_while_it_is_measured(tmp_path: Path) -> None:
    version = tmp_path / "classifier" / "1"
    onnx_models.classifier(version / "model.onnx")
    config = 'backend: "pinstream" dynamic_batching { default_queue_policy { max_queue_size: 8 } }'
    (version.parent / "config.pbtxt").write_text(config)
    placed = place(find(version.parent, None, tmp_path), tmp_path / "models")
    assert placed.config.dynamic_batching.default_queue_policy.max_queue_size == 8


def test_the_detector_starts_with_the_instances_that_serve_gives_it(tmp_path: Path) -> None:
    tuned = find(built(tmp_path / "built", "model.plan", yolox={}), None, tmp_path)
    counts = sizing.instances(len(os.sched_getaffinity(0)), gpu=True)
    assert (tuned.name, tuned.config.instance_group[0].count) == ("yolox_detector", counts["yolox_detector"])
    policy = tuned.config.dynamic_batching.default_queue_policy
    assert policy.default_timeout_microseconds == sizing.PATIENCE_ON_GPU_S * 1_000_000


def test_a_detector_takes_tensors_alone_while_it_is_measured_and_references_as_it_is_written(tmp_path: Path) -> None:
    tuned = find(built(tmp_path / "built", "model.plan", yolox={}), None, tmp_path)
    assert "BY_REFERENCE" not in place(tuned, tmp_path / "models").config.parameters
    assert Settings(delay_us=500).apply(tuned.config).parameters["BY_REFERENCE"].string_value == "images"


def test_what_was_built_of_another_network_has_its_directorys_name(tmp_path: Path) -> None:
    directory = built(tmp_path / "segmenter", "model.plan")
    assert locate(Source(directory), tmp_path) == (directory, "segmenter")
    tuned = find(directory, None, tmp_path)
    assert (tuned.name, len(tuned.config.instance_group)) == ("segmenter", 0)
    (directory / "model.json").unlink()
    with pytest.raises(CommandError, match=r"model\.json cannot be read"):
        locate(Source(directory), tmp_path)


def test_what_is_left_to_do_is_said(tmp_path: Path) -> None:
    tuned = find(onnx_models.classifier(tmp_path / "classifier.onnx"), None, tmp_path)
    said = how_to_serve(tuned, Path("tuned.pbtxt"))
    for words in ("put tuned.pbtxt into", "classifier/config.pbtxt", "classifier/1", "serve --model-repository"):
        assert words in said


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("", "it is a model repository: name a model in it, as in pinstream tune {}/classifier"),
        ("empty", "name a model's directory, what `pinstream build` made, or an ONNX file"),
        ("classifier/1", "name a model's directory"),
    ],
)
def test_of_a_directory_that_is_no_models_it_is_said_what_it_is(tmp_path: Path, place: str, hint: str) -> None:
    onnx_models.classifier(tmp_path / "classifier" / "1" / "model.onnx")
    (tmp_path / "classifier" / "config.pbtxt").write_text('backend: "pinstream"')
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(main, ["tune", str(tmp_path / place)])
    assert done.exit_code == 2, done.output
    assert f"{tmp_path / place} has no config.pbtxt, as a model's directory has, and no model.json" in done.output
    assert hint.format(tmp_path) in done.output
    assert "--model " not in done.output
    assert done.output.count("\n") == 1


def test_a_directory_with_a_model_that_is_named_is_tuned(tmp_path: Path) -> None:
    onnx_models.classifier(tmp_path / "there" / "model.onnx")
    assert find(tmp_path / "there", "classifier", tmp_path).name == "classifier"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "as in --out my_models/classifier/config.pbtxt"),
        (["--out", "{}/classifier.onnx/config.pbtxt"], "is no directory"),
        (["--out", "{}"], "is a directory; name a file"),
        (["--dry-run", "--batch", "64"], "--batch 64: classifier takes 8 items a request at most"),
    ],
)
def test_refusals_come_before_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.setattr("pinstream_cli.tune.bench", pytest.fail)
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    done = CliRunner().invoke(main, ["tune", str(model), *(text.format(tmp_path) for text in arguments)])
    assert done.exit_code == 2, done.output
    assert error in done.output
    assert done.output.count("\n") == 1
