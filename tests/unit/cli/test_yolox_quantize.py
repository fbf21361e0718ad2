"""INT8 serving graphs: what is quantized and how, what is not, and what `pinstream build --int8` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, numpy_helper

from pinstream.plans.graph import stated_precision
from pinstream_cli.build import build
from pinstream_cli.yolox_graph import fuse, is_serving_graph
from pinstream_cli.yolox_quantize import MOST_PICTURES, calibration_pictures, quantize, sensitive
from pinstream_cli.yolox_recognise import recognise
from pinstream_cli.yolox_service import build_service
from tests.held_out import HeldOut, held_out, precision, write_training_pictures
from tests.rtx import installed_rtx
from tests.yolox_exports import Export, save_classifier

MODEL = Path(__file__).parents[3] / "models" / "shapes_nano.onnx"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (40 + 30 * index, 70, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), noise)
    (folder / "readme.txt").write_text("no picture")
    return folder


def serving_graph(export: Path, candidates: int = 20) -> Any:
    recognised = recognise(export)
    return fuse(recognised, candidates, [f"class_{index}" for index in range(recognised.num_classes)])


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(build, [str(argument) for argument in arguments])


def failure(*arguments: Any) -> str:
    """Runs a command that has to fail with one line and exit code 2."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def test_onnx_runtime_multiplies_in_fp32_as_the_documentation_says(tmp_path: Path, pictures: Path) -> None:
    graph, _ = quantize(serving_graph(Export(seed=3).save(tmp_path / "export.onnx")), sorted(pictures.glob("*.png")))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert not [name for name in run if name in ("QLinearConv", "ConvInteger")]
    assert sum(name in ("Conv", "FusedConv") for name in run) == sum(n.op_type == "Conv" for n in graph.graph.node)


def test_everything_is_symmetric_and_weights_have_a_scale_a_channel(tmp_path: Path, pictures: Path) -> None:
    graph = serving_graph(Export(seed=3).save(tmp_path / "export.onnx"))
    before = graph.SerializeToString()
    quantized, how = quantize(graph, calibration_pictures(pictures))
    assert graph.SerializeToString() == before, "the graph itself is left alone"
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    convolutions = [node for node in quantized.graph.node if node.op_type == "Conv"]
    in_int8 = [node for node in convolutions if makers.get(node.input[1]) is not None]
    assert len(in_int8) == how.convolutions > 0
    assert len(convolutions) == how.convolutions + how.kept
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.data_type == TensorProto.INT8, "TensorRT takes no UINT8"
            assert not numpy_helper.to_array(zero_point).any(), "TensorRT takes no other zero points"
    for node in in_int8:
        weights = makers[node.input[1]]
        assert weights.op_type == "DequantizeLinear"
        assert constants[weights.input[1]].dims == [constants[weights.input[0]].dims[0]]
        assert makers[node.input[0]].op_type == "DequantizeLinear"
        if len(node.input) > 2:
            assert constants[node.input[2]].data_type == TensorProto.FLOAT, "TensorRT takes no quantized bias"
    assert stated_precision(quantized) == "int8"


def test_what_stays_in_fp32_in_the_built_in_model() -> None:
    graph = serving_graph(MODEL).graph
    kept = sensitive(graph)
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert convolutions[0] in kept
    for level in range(3):
        head = [name for name in convolutions if f"/heads.{level}/" in name]
        assert {name for name in head if "/box" in name or "/objectness" in name or "/classes" in name} <= kept
        assert any("/class_branch" in name for name in head if name not in kept)
        assert any("/stem" in name for name in head if name not in kept), "both branches are made from it"
    groups = {
        node.name: next((a.i for a in node.attribute if a.name == "group"), 1)
        for node in graph.node
        if node.op_type == "Conv"
    }
    assert all(groups[name] == 1 for name in convolutions if name not in kept)
    assert len(kept) < len(convolutions) / 2


def test_the_quantized_graph_finds_about_the_same(tmp_path: Path, pictures: Path) -> None:
    graph = serving_graph(Export(seed=3).save(tmp_path / "export.onnx"), candidates=84)
    quantized, _ = quantize(graph, calibration_pictures(pictures))
    image = np.random.default_rng(9).integers(0, 256, (2, 64, 64, 3), np.uint8)
    rows = []
    for model in (graph, quantized):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        rows.append(session.run(None, {"images": image})[0])
    assert rows[0].shape == rows[1].shape == (2, 84, 6)
    differences = np.abs(rows[0][..., 4] - rows[1][..., 4])
    assert 0 < differences.max() < 0.1, "changed a little, and not broken"


def test_the_command_writes_a_serving_graph_that_says_what_it_is(tmp_path: Path, pictures: Path) -> None:
    export = Export(seed=3).save(tmp_path / "export.onnx")
    result = command(export, "-o", tmp_path / "out", "--int8", pictures, "--candidates", 20)
    assert result.exit_code == 0, result.output
    assert "Percentile" not in result.output, "the quantizer's own words stay inside"
    assert is_serving_graph(tmp_path / "out" / "model.onnx")
    written = json.loads((tmp_path / "out" / "model.json").read_text())
    section = written["quantization"]
    assert section["pictures"] == 3
    total = section["convolutions"] + section["kept"]
    assert f"int8 in {section['convolutions']} of {total} convolutions, calibrated on 3" in result.output
    assert stated_precision(onnx.load(str(tmp_path / "out" / "model.onnx"))) == "int8"


def test_pictures_are_spread_over_all_there_are(tmp_path: Path) -> None:
    for index in range(3 * MOST_PICTURES):
        (tmp_path / f"{index:04d}.jpg").touch()
    chosen = [int(path.stem) for path in calibration_pictures(tmp_path)]
    assert len(set(chosen)) == MOST_PICTURES
    assert (chosen[0], chosen[-1]) == (0, 3 * MOST_PICTURES - 1)
    assert max(np.diff(chosen)) <= 4


def test_folders_that_cannot_be_used_are_one_line(tmp_path: Path, pictures: Path) -> None:
    export = Export().save(tmp_path / "export.onnx")
    (tmp_path / "empty").mkdir()
    assert "no picture in it" in failure(export, "-o", tmp_path / "out", "--int8", tmp_path / "empty")
    assert "is not a directory" in failure(export, "-o", tmp_path / "out", "--int8", tmp_path / "none")
    (tmp_path / "empty" / "a.jpg").write_text("text")
    assert "not an image" in failure(export, "-o", tmp_path / "out", "--int8", tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_what_excludes_each_other_is_one_line(tmp_path: Path, pictures: Path) -> None:
    export = Export().save(tmp_path / "export.onnx")
    wishes = ("--plan", "--precision", "fp16", "--int8", pictures)
    assert "exclude each other" in failure(export, "-o", tmp_path / "out", *wishes)


def test_only_yolox_exports_are_quantized(tmp_path: Path, pictures: Path) -> None:
    installed_rtx()
    classifier = save_classifier(tmp_path / "classifier.onnx")
    line = failure(classifier, "-o", tmp_path / "out", "--plan", "--int8", pictures)
    assert "--int8 quantizes YOLOX exports only" in line


def test_a_tensorrt_without_int8_convolutions_says_so(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_rtx()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export = Export(seed=3).save(tmp_path / "export.onnx")
    line = failure(export, "-o", tmp_path / "out", "--plan", "--batch-sizes", 1, "--int8", pictures)
    assert "no convolutions in INT8: build it with the full TensorRT" in line
    assert not (tmp_path / "out").exists()


def candidates_of(graph: Path, pictures: HeldOut) -> list[Any]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": image[None]})[0][0] for image in pictures.images]


def test_int8_costs_the_built_in_model_less_than_a_point(tmp_path: Path) -> None:
    """Both graphs on the same pictures, fewer than the other gates take: it is the difference that counts."""
    held = held_out(60)
    build_service(MODEL, tmp_path / "fp32")
    build_service(MODEL, tmp_path / "int8", int8=write_training_pictures(tmp_path / "pictures", 16))
    fp32 = precision(candidates_of(tmp_path / "fp32" / "model.onnx", held), held)
    int8 = precision(candidates_of(tmp_path / "int8" / "model.onnx", held), held)

    assert fp32 > 0.8
    assert int8 > fp32 - 0.01
