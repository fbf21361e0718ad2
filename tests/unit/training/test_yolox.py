"""The sizes are the paper's, SimOTA gives cells as it should, and `pinstream build` takes an export."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the network is trained with PyTorch, which nothing else here needs")

from training.export import export_onnx, for_inference  # noqa: E402
from training.export_random import random_yolox  # noqa: E402
from training.simota import assign, candidate_rows, losses, overlap  # noqa: E402
from training.yolox import SIZES, YOLOX, cells, count_flops, count_parameters, decode  # noqa: E402

SIZE = (96, 160)  # height and width differ, so that they cannot be mixed up unseen


@pytest.mark.parametrize(
    ("size", "millions"), [("nano", 0.91), ("tiny", 5.06), ("s", 9.0), ("m", 25.3), ("l", 54.2), ("x", 99.1)]
)
def test_parameters_are_those_of_the_paper(size: str, millions: float) -> None:
    digits = len(str(millions).split(".")[1])
    with torch.device("meta"):  # shapes alone
        assert round(count_parameters(YOLOX(SIZES[size], 80)) / 1e6, digits) == millions


@pytest.mark.parametrize(("size", "pixels", "billions"), [("nano", 416, 1.08), ("tiny", 416, 6.45), ("m", 640, 73.8)])
def test_operations_are_those_of_the_paper(size: str, pixels: int, billions: float) -> None:
    # The paper's figures count batch norm and biases as well.
    assert 0.96 * billions < count_flops(YOLOX(SIZES[size], 80), pixels, pixels) / 1e9 < billions


def test_rows_come_in_the_order_of_the_strides() -> None:
    grid = cells(*SIZE)
    assert grid.shape == (12 * 20 + 6 * 10 + 3 * 5, 3)
    assert grid[1].tolist() == [1, 0, 8]
    assert grid[20].tolist() == [0, 1, 8]
    assert grid[12 * 20 + 1].tolist() == [1, 0, 16]
    assert grid[-1].tolist() == [4, 2, 32]


def test_candidates_are_the_cells_around_the_centre() -> None:
    boxes = torch.tensor([[50.0, 30.0, 70.0, 50.0], [0.0, 0.0, 4.0, 4.0]])  # centres (60, 40) and (2, 2)
    rows, exist = candidate_rows(boxes, *SIZE)
    grid = cells(*SIZE)
    centres = (grid[:, :2] + 0.5) * grid[:, 2:]
    for box, mine, real in zip(boxes, rows, exist, strict=True):
        centre = (box[:2] + box[2:]) / 2
        near = ((centres - centre).abs() <= 1.5 * grid[:, 2:]).all(dim=1).nonzero().flatten()
        assert set(mine[real].tolist()) <= set(near.tolist())
        assert real.sum() >= len(near) - 15  # a centre on the edge of a cell has four cells in reach along an axis
    assert exist[0].all()
    assert exist[1].sum() == 12, "a corner has 2x2 cells on each level"


def perfect_output(boxes: npt.NDArray[np.float32], labels: list[int], num_classes: int) -> object:
    """What a network puts out that is sure of these boxes in every cell that may answer for them."""
    grid = cells(*SIZE)
    raw = torch.full((1, len(grid), 5 + num_classes), -6.0)
    for box, label in zip(torch.from_numpy(boxes), labels, strict=True):
        rows, exist = candidate_rows(box, *SIZE)
        mine = grid[rows[exist]]
        centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        raw[0, rows[exist], :2] = centre / mine[:, 2:] - mine[:, :2]
        raw[0, rows[exist], 2:4] = (size / mine[:, 2:]).log()
        raw[0, rows[exist], 4] = 6.0
        raw[0, rows[exist], 5 + label] = 6.0
    return raw


BOXES = np.array([[10, 10, 40, 40], [90, 30, 150, 90], [0, 0, 0, 0]], np.float32)


def test_what_is_encoded_is_what_is_decoded() -> None:
    raw = perfect_output(BOXES[:2], [1, 2], 3)
    rows, exist = candidate_rows(torch.from_numpy(BOXES[:2]), *SIZE)
    boxes = decode(raw, cells(*SIZE))[0]
    for box, mine, real in zip(BOXES, rows, exist, strict=False):
        np.testing.assert_allclose(boxes[mine[real]].numpy(), np.tile(box, (int(real.sum()), 1)), atol=1e-3)


def test_simota_gives_as_many_cells_as_the_overlaps_add_up_to() -> None:
    raw = perfect_output(BOXES[:2], [1, 2], 3)
    boxes, labels = torch.from_numpy(BOXES)[None], torch.tensor([[1, 2, -1]])
    matched = assign(raw, cells(*SIZE), boxes, labels, SIZE).matched
    # All IoUs are 1, so the ten highest add up to 10.
    assert matched.sum(-1).tolist() == [[10, 10, 0]]


def test_simota_gives_one_cell_to_an_object_that_nothing_fits_yet() -> None:
    raw = torch.zeros(1, len(cells(*SIZE)), 8)
    raw[..., 2:4] = -5.0
    boxes, labels = torch.from_numpy(BOXES)[None], torch.tensor([[1, 2, -1]])
    assert assign(raw, cells(*SIZE), boxes, labels, SIZE).matched.sum(-1).tolist() == [[1, 1, 0]]


def test_simota_prefers_cells_that_know_the_class() -> None:
    raw = perfect_output(BOXES[1:2], [1], 3)
    rows, _ = candidate_rows(torch.from_numpy(BOXES[1:2]), *SIZE)
    wrong = rows[0, :20]
    raw[0, wrong, 6], raw[0, wrong, 7] = -6.0, 6.0  # type: ignore[index]
    boxes, labels = torch.from_numpy(BOXES[1:2])[None], torch.tensor([[1]])
    matched = assign(raw, cells(*SIZE), boxes, labels, SIZE).matched[0, 0]
    assert matched[20:].all(), "the seven that know it come first"
    assert matched.sum() == 10


def test_no_cell_answers_for_two_objects() -> None:
    torch.manual_seed(0)
    corners = torch.rand(2, 12, 2) * 60 + 10
    boxes = torch.cat([corners, corners + torch.rand(2, 12, 2) * 40 + 10], dim=-1)
    raw = torch.randn(2, len(cells(*SIZE)), 8)
    result = assign(raw, cells(*SIZE), boxes, torch.randint(0, 3, (2, 12)), SIZE)
    for rows, matched in zip(result.rows, result.matched, strict=True):
        taken = rows[matched].tolist()
        assert len(taken) == len(set(taken)) > 0


def test_losses_are_small_for_what_is_right_and_fall_for_what_is_learnt() -> None:
    boxes, labels = torch.from_numpy(BOXES)[None], torch.tensor([[1, 2, -1]])
    right = losses(perfect_output(BOXES[:2], [1, 2], 3), cells(*SIZE), boxes, labels, SIZE, with_l1=True)
    assert right["box"] < 1e-3
    assert right["l1"] < 1e-3
    assert right["class"] < 0.02
    wrong = losses(perfect_output(BOXES[:2] + 9, [2, 1], 3), cells(*SIZE), boxes, labels, SIZE, with_l1=True)
    for name, loss in right.items():
        assert wrong[name] > loss, name


def test_a_picture_without_objects_has_a_loss() -> None:
    raw = torch.zeros(1, len(cells(*SIZE)), 8, requires_grad=True)
    parts = losses(raw, cells(*SIZE), torch.zeros(1, 4, 4), torch.full((1, 4), -1), SIZE, with_l1=True)
    torch.stack(list(parts.values())).sum().backward()
    assert parts["objectness"] > 0
    assert parts["box"] == parts["class"] == parts["l1"] == 0
    assert torch.isfinite(raw.grad).all()


def test_overlap_of_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    np.testing.assert_allclose(overlap(first, others).numpy(), [1, 1 / 3, 0], rtol=1e-6)


@cache
def _random(seed: int) -> YOLOX:
    return random_yolox("nano", 12, seed)


def trained_like() -> YOLOX:
    """A copy of a network whose activations are like those of a trained one; making it takes seconds."""
    return copy.deepcopy(_random(0))


@pytest.mark.parametrize("opset", [11, 17])
def test_an_export_has_yolox_contract_and_computes_what_the_network_does(tmp_path: Path, opset: int) -> None:
    model, path = trained_like(), tmp_path / "model.onnx"
    export_onnx(model, path, *SIZE, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(t.name, t.shape, t.type) for t in session.get_inputs()] == [("images", [1, 3, *SIZE], "tensor(float)")]
    assert [(t.name, t.shape, t.type) for t in session.get_outputs()] == [("output", [1, 315, 17], "tensor(float)")]
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE)).astype(np.float32)
    (output,) = session.run(None, {"images": images})
    with torch.no_grad():
        raw = model(torch.from_numpy(images))
    np.testing.assert_allclose(output[..., :4], raw[..., :4].numpy(), rtol=1e-3, atol=2e-2)
    np.testing.assert_allclose(output[..., 4:], raw[..., 4:].sigmoid().numpy(), atol=1e-2)


def test_exporting_leaves_the_network_as_it_is() -> None:
    model = trained_like().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for_inference(model)
    assert model.training
    assert not model.sigmoid
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_build_takes_an_export_for_yolox(tmp_path: Path) -> None:
    from pinstream_cli.yolox_recognise import recognise

    export_onnx(trained_like(), tmp_path / "model.onnx", *SIZE)
    export = recognise(tmp_path / "model.onnx")
    assert (export.input_size, export.num_classes, export.decoded) == (SIZE, 12, False)


def test_random_weights_are_the_same_for_the_same_seed_and_stay_in_range() -> None:
    first, second, other = trained_like(), random_yolox("nano", 12, 0), random_yolox("nano", 12, 1)
    images = torch.rand(1, 3, *SIZE) * 255
    largest = 0.0

    def watch(layer: object, inputs: object, output: object) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))  # type: ignore[attr-defined]

    for module in first.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(watch)
    with torch.no_grad():
        output = first(images)
        assert torch.equal(output, second(images))
        assert not torch.equal(output, other(images))
    assert torch.isfinite(output).all()
    assert largest < 6000, "FP16 ends at 65504"
