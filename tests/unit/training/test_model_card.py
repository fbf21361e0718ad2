"""What models/README.md says of the built-in model is so."""

import hashlib
import json
import re
from pathlib import Path

import onnx
import pytest

from training.shapes import LABELS, render

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "shapes_nano.onnx"


@pytest.fixture(scope="module")
def card() -> str:
    return (ROOT / "models" / "README.md").read_text()


def test_the_file_is_the_one_of_the_card_and_below_five_megabytes(card: str) -> None:
    data = MODEL.read_bytes()
    assert f"`{hashlib.sha256(data).hexdigest()}`" in card
    assert f"{len(data) / 1e6:.1f} MB" in card
    assert len(data) < 5e6


def test_the_contract_is_yolox_s(card: str) -> None:
    model = onnx.load(str(MODEL))
    onnx.checker.check_model(model, full_check=True)
    assert f"opset {model.opset_import[0].version}" in card
    for tensor in (model.graph.input[0], model.graph.output[0]):
        shape = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        assert f"`{tensor.name}` float32 {shape}" in card
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "*Classes**: " + ", ".join(LABELS) in card


def test_the_metrics_are_those_of_the_training_run_and_reach_their_target(card: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "training" / "shapes_nano.json").read_text())
    stated = re.search(r"AP50 (\S+), AP50:95 (\S+), AP75 (\S+);", card)
    assert stated is not None
    assert [float(value) for value in stated.groups()] == [round(found[name], 3) for name in ("AP50", "AP", "AP75")]
    assert found["AP50"] >= 0.95
    assert found["AP"] >= 0.80
    ordered = sorted(found["classes"], key=lambda name: found["classes"][name]["AP"])
    assert f"worst class is `{ordered[0]}`" in " ".join(card.split())
    assert f"the best `{ordered[-1]}`" in " ".join(card.split())
    options = found["options"]
    assert f"--minutes {options['minutes']:g}` (seed {options['seed']})" in card
    assert f"{found['images']:,} pictures shown" in card


def test_the_demonstration_is_the_held_out_picture_of_its_seed(card: str) -> None:
    seed = re.search(r"`demo.jpg` is the held-out picture of seed (\d+)", card)
    assert seed is not None
    assert render(int(seed[1])).jpeg == (ROOT / "models" / "demo.jpg").read_bytes()
