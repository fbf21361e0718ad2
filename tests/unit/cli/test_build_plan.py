"""`pinstream build --plan`: from a YOLOX export or any other model to plans, and what it says on the way."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from rich.progress import Progress

from pinstream import sidecar
from pinstream.engines import find_model_file
from pinstream.engines.flavour import Flavour
from pinstream.engines.plan_source import check_plans
from pinstream.errors import ModelFileError
from pinstream.options import Options
from pinstream.plans.half import to_half
from pinstream_cli import build_plan
from pinstream_cli.build import build
from pinstream_cli.console import Console
from pinstream_cli.yolox_graph import exact_nodes, is_serving_graph
from pinstream_cli.yolox_half import half_error
from pinstream_cli.yolox_service import build_service
from tests import onnx_models
from tests.rtx import installed_rtx
from tests.shared_files import shared_image, shared_model
from tests.yolox_exports import Export


@pytest.fixture(autouse=True)
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flavour:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return installed_rtx()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return Export().save(tmp_path / "yolox_tiny.onnx")


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(build, [str(argument) for argument in arguments])


def failure(*arguments: Any) -> str:
    """Runs a command that has to fail, with one line and exit code 2."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_yolox_export_becomes_plans_with_the_service_s_sidecar(export: Path, tmp_path: Path, rtx: Flavour) -> None:
    out = tmp_path / "out"
    result = command(export, "-o", out, "--plan", "--batch-sizes", "1,4", "--candidates", "20")
    assert result.exit_code == 0, result.output
    assert names(out) == ["model.b1.plan", "model.b4.plan", "model.json", "model.onnx"]
    assert is_serving_graph(out / "model.onnx")
    written = sidecar.read(out / "model.json")
    assert written.kind == "plan"
    assert written.inputs == (sidecar.TensorEntry("images", "UINT8", (-1, 64, 64, 3)),)
    assert written.outputs == (sidecar.TensorEntry("candidates", "FP32", (-1, 20, 6)),)
    assert written.labels == ("class_0", "class_1", "class_2")
    assert written.sections["yolox"] == {"input_size": [64, 64], "num_classes": 3, "candidates": 20}
    assert written.sections["source"] == {"file": "yolox_tiny.onnx", "sha256": sidecar.file_sha256(export)}
    assert written.sections["onnx"]["sha256"] == sidecar.file_sha256(out / "model.onnx")
    assert written.sections["onnx"]["file"] == "model.onnx"
    for words in ("from       yolox_tiny.onnx", "images UINT8 [-1, 64, 64, 3]", f"{rtx}", "hint: class names are"):
        assert words in result.output


def test_fp16_says_what_it_changes_in_the_boxes(tmp_path: Path) -> None:
    export = Export(seed=3).save(tmp_path / "yolox_tiny.onnx")
    result = command(export, "-o", tmp_path / "out", "--plan", "--batch-sizes", "1", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "model.json").read_text())
    section = written["tensorrt"]
    assert section["precision"] == "fp16"
    assert section["arguments"] == ["--precision", "fp16", "--batch-sizes", "1"]
    assert "precision  fp16; boxes" in result.output
    assert {check["precision"] for check in written["checks"]} == {"fp32"}
    assert written["fp16_check"]["against"] == "the same graph in fp32"
    assert written["fp16_check"]["candidates"] > 0
    assert 0 < written["fp16_check"]["max_score_error"] < 0.1
    # Built again in FP32, the plans are no longer what that check was of.
    again = command(tmp_path / "out" / "model.onnx", "-o", tmp_path / "again", "--plan", "--batch-sizes", "1")
    assert again.exit_code == 0, again.output
    sections = sidecar.read(tmp_path / "again" / "model.json").sections
    assert "checks" in sections
    assert "fp16_check" not in sections


def test_decoding_stays_in_fp32_when_the_network_becomes_fp16(tmp_path: Path) -> None:
    """At 640 pixels FP16 has half a pixel: an FP16 decoder would put box edges on that grid."""
    build_service(Export(size=(640, 640)).save(tmp_path / "m.onnx"), tmp_path / "out", candidates=50)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (1, 640, 640, 3), dtype=np.uint8)

    def corners_come_from_fp16(half: Any) -> bool:
        # ONNX Runtime cannot tell: it computes in FP32 what is cast to it afterwards.
        candidates = next(node for node in half.graph.node if node.op_type == "Concat" and "candidates" in node.output)
        return all(name.endswith("/single") for name in candidates.input[:2])

    def on_the_grid(half: Any) -> float:
        session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
        boxes = session.run(["candidates"], {"images": images})[0][..., :4]
        far = boxes[boxes > 520]
        assert far.size
        return float(np.mean(far * 2 == np.round(far * 2)))

    half = to_half(model, exact_nodes(model))
    assert (corners_come_from_fp16(to_half(model)), corners_come_from_fp16(half)) == (True, False)
    assert on_the_grid(half) < 0.2


def test_the_real_network_in_fp16_keeps_its_boxes_within_a_pixel(tmp_path: Path) -> None:
    build_service(shared_model(), tmp_path)
    error = half_error(tmp_path / "model.onnx", images=[shared_image()])
    assert error.candidates >= 20
    assert 0 < error.max_box_error_px <= 1
    assert error.max_score_error < 0.03


def test_numbers_that_fp16_loses_are_told_loudly(tmp_path: Path) -> None:
    model = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["x", "k"], ["large"]), helper.make_node("Mul", ["large", "large"], ["y"], "square")],
        [("x", TensorProto.FLOAT, ["batch", 4])],
        [("y", TensorProto.FLOAT, ["batch", 4])],
        {"k": np.array(1000, np.float32)},
    )
    arguments = (model, "-o", tmp_path / "out", "--plan", "--batch-sizes", "1", "--precision", "fp16")
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    assert "warning: FP16 loses numbers of this model: on random numbers node square makes" in result.output
    kept = command(*arguments, "--fp32-node", "square")
    assert kept.exit_code == 0, kept.output
    assert "warning" not in kept.output


def test_any_other_model_is_built_directly(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    out = tmp_path / "out"
    result = command(model, "-o", out, "--plan", "--max-batch", 32, "--compute-capability", "8.9", "--flavour", "auto")
    assert result.exit_code == 0, result.output
    assert names(out) == ["model.json", "model.onnx", "model.plan"]
    assert (out / "model.onnx").read_bytes() == model.read_bytes()
    assert sidecar.read(out / "model.json").inputs[0].shape == (-1, 3, 8, 8)
    assert "profile 0  pixels 1x3x8x8 to 32x3x8x8, tuned for 32x3x8x8" in result.output
    assert "for 8.9" in result.output
    wide = onnx_models.dynamic_width(tmp_path / "wide.onnx")
    result = command(wide, "-o", out, "--plan", "--max-batch", 2, "--shape", "row:1:4:8", "--shape", "row:9:12:16")
    assert result.exit_code == 0, result.output
    assert "profile 1  row 1x9 to 2x16, tuned for 2x12" in result.output


def test_a_plan_is_rebuilt_from_the_model_beside_it(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(export, "-o", out, "--plan", "--batch-sizes", "1").exit_code == 0
    first = sidecar.read(out / "model.json")
    assert command(out / "model.onnx", "-o", out, "--plan", "--max-batch", "2").exit_code == 0
    again = sidecar.read(out / "model.json")
    assert names(out) == ["model.json", "model.onnx", "model.plan"]
    assert (again.labels, again.sections["yolox"]) == (first.labels, first.sections["yolox"])
    assert again.sections["source"] == first.sections["source"]


@pytest.mark.parametrize("name", ["net.plan", "model.b4.plan"])
def test_a_plan_is_accepted_once_the_advice_of_its_refusal_was_followed(
    tmp_path: Path, rtx: Flavour, name: str
) -> None:
    version = tmp_path / "1"
    version.mkdir()
    (version / name).touch()

    def check(**config: str) -> list[Path]:
        files, _ = check_plans(find_model_file(version, Options.from_model_config(config)), rtx, None)
        return files

    with pytest.raises(ModelFileError, match="is empty") as caught:
        check(default_model_filename=name)
    advised = re.search("build it: `pinstream build MODEL.onnx (.+)`(.*)", str(caught.value))
    assert advised is not None
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    built = command(model, *shlex.split(advised[1]))
    assert built.exit_code == 0, built.output
    assert (
        f"leave {name} out of config.pbtxt where that names it (default_model_filename" in advised[2] or not advised[2]
    )
    files = check() if advised[2] else check(default_model_filename=name)
    assert version / "model.b4.plan" in files


def test_the_bar_of_each_plan_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    progress = build_plan._progress

    def kept(console: Console) -> Progress:
        bars.append(progress(console))
        return bars[-1]

    monkeypatch.setattr(build_plan, "_progress", kept)
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    assert command(model, "-o", tmp_path / "out", "--plan", "--batch-sizes", "1,2").exit_code == 0
    (bar,) = bars
    assert {task.description: task.completed / (task.total or 0) for task in bar.tasks} == {
        "model.b1.plan": 1,
        "model.b2.plan": 1,
    }


def test_failures_are_one_line_and_leave_the_directory_as_it_was(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(export, "-o", out, "--plan", "--batch-sizes", "1").exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    text = failure(export, "-o", out, "--plan", "--compute-capability", "9.0")
    assert "and not for 9.0" in text
    assert "--batch-sizes 1;2: expected numbers" in failure(export, "-o", out, "--plan", "--batch-sizes", "1;2")
    assert "exclude each other" in failure(export, "-o", out, "--plan", "--batch-sizes", 1, "--max-batch", 2)
    assert "does not fit input 'images'" in failure(export, "-o", out, "--plan", "--shape", "images:1x1x1")
    assert "no such file" in failure(tmp_path / "absent.onnx", "-o", out, "--plan")
    assert "plugin library absent.so: no such" in failure(export, "-o", out, "--plan", "--plugin", "absent.so")
    assert "cannot be loaded" in failure(export, "-o", out, "--plan", "--plugin", export)
    assert "cannot be read" in failure(export, "-o", out, "--plan", "--labels", tmp_path / "absent.txt")
    broken = onnx_models.unchecked(
        tmp_path / "broken.onnx",
        [onnx.helper.make_node("FooBar", ["x"], ["y"])],
        [("x", onnx.TensorProto.FLOAT, [1])],
        [("y", onnx.TensorProto.FLOAT, [1])],
    )
    text = failure(broken, "-o", out, "--plan")
    assert text.startswith(f"error: {broken}: ")
    assert "FooBar" in text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "choose another directory" in failure(export, "-o", export / "below", "--plan")


def test_plan_options_without_plan_are_refused(export: Path, tmp_path: Path) -> None:
    text = failure(export, "-o", tmp_path / "out", "--precision", "fp16")
    assert text == "error: precision is an option for plans; add --plan"
    assert not (tmp_path / "out").exists()


def test_a_fixed_batch_that_is_no_yolox_says_why_it_was_not_made_dynamic(tmp_path: Path) -> None:
    static = onnx_models.classifier(tmp_path / "static.onnx", batch=1)
    said = failure(static, "-o", tmp_path / "out", "--plan", "--batch-sizes", "1,4")
    assert "export the model with a dynamic batch dimension" in said
    assert "taken as it is" in said
    assert "not a YOLOX export" in said
