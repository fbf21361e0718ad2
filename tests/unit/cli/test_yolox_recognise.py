"""What is no YOLOX export is refused, and the message says what was looked for and what was found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.onnx_files import open_session
from pinstream_cli.yolox_graph import fuse
from pinstream_cli.yolox_recognise import recognise
from tests.yolox_exports import Export, save_classifier


def image_dims(model: Any) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim


def free_height_and_width(model: Any) -> None:
    image_dims(model)[2].dim_param, image_dims(model)[3].dim_param = "height", "width"


def four_channels(model: Any) -> None:
    image_dims(model)[1].dim_value = 4


def odd_width(model: Any) -> None:
    image_dims(model)[3].dim_value = 72


def half_precision(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))


def second_output(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))


def behind(model: Any, *nodes: Any, **constants: Any) -> None:
    """Puts nodes from `output` to `changed` behind a model, which is then its output."""
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("changed", TensorProto.FLOAT, None))


def one_row_less(model: Any) -> None:
    behind(
        model,
        helper.make_node("Slice", ["output", "from", "to", "axis"], ["changed"]),
        **{"from": [1], "to": [84]},
        axis=[1],
    )


def no_classes(model: Any) -> None:
    behind(
        model,
        helper.make_node("Slice", ["output", "from", "to", "axis"], ["changed"]),
        **{"from": [0], "to": [5]},
        axis=[2],
    )


def columns_before_rows(model: Any) -> None:
    behind(model, helper.make_node("Transpose", ["output"], ["changed"], perm=[0, 2, 1]))


def scores_from_0_to_100(model: Any) -> None:
    behind(model, helper.make_node("Mul", ["output", "hundred"], ["changed"]), hundred=np.float32(100))


def not_a_number(model: Any) -> None:
    behind(model, helper.make_node("Mul", ["output", "nan"], ["changed"]), nan=np.float32(np.nan))


def scaled_boxes(model: Any) -> None:
    scale = np.array([2, 2, 2, 2, 1, 1, 1, 1], np.float32)
    behind(model, helper.make_node("Mul", ["output", "scale"], ["changed"]), scale=scale)


REFUSALS: dict[str, tuple[Export, Callable[[Any], None], str]] = {
    "height and width dynamic": (Export(), free_height_and_width, r"must be fixed.*\[1, 3, height, width\].*--dynamic"),
    "four channels": (Export(), four_channels, r"float32 \[batch, 3, height, width\]; found 'images' FLOAT \[1, 4,"),
    "no multiple of 32": (Export(), odd_width, r"multiples of 32; found 'images' FLOAT \[1, 3, 64, 72\]"),
    "float16": (Export(), half_precision, r"found 'images' FLOAT16 .*export it in float32"),
    "two inputs": (Export(), second_input, r"one input.*found 2: 'images' FLOAT .*'scale' FLOAT"),
    "two outputs": (Export(), second_output, r"one output.*found 2: 'output' FLOAT"),
    "a row less": (
        Export(),
        one_row_less,
        r"\[batch, 84, 5 \+ classes\].*8x8 \+ 4x4 \+ 2x2\); found float32 \[1, 83, 8\]",
    ),
    "columns before rows": (Export(), columns_before_rows, r"\[batch, 84, 5 \+ classes\].*found float32 \[1, 8, 84\]"),
    "no classes": (Export(), no_classes, r"5 \+ classes\].*found float32 \[1, 84, 5\]"),
    "no sigmoid": (Export(sigmoid=False), lambda model: None, r"lie in 0\.\.1 after the sigmoid; found -"),
    "scores in percent": (Export(), scores_from_0_to_100, r"lie in 0\.\.1 after the sigmoid; found 8\.53\.\.71\.6"),
    "NaN": (Export(), not_a_number, "gives NaN or infinity"),
    "decoded otherwise": (Export(decode="concat"), scaled_boxes, "neither the head .* nor the head decoded"),
    "changed after the head": (Export(), scaled_boxes, "neither the head .* nor the head decoded"),
    "changed after decoding": (Export(decode="level"), scaled_boxes, "later nodes change them"),
}


@pytest.mark.parametrize(("export", "spoil", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refuses(export: Export, spoil: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = export.model()
    spoil(model)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(NotYoloxError, match=message):
        recognise(tmp_path / "model.onnx")


def test_refuses_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(
        NotYoloxError, match=r"one output, float32 \[batch, anchors, 5 \+ classes\]; found 'logits' FLOAT"
    ):
        recognise(save_classifier(tmp_path / "classifier.onnx"))


def test_refuses_a_graph_that_it_cannot_tell_decoded_or_not(tmp_path: Path) -> None:
    """Exponential sizes, but centres that do not follow the grid: the two signs of decoding contradict each other."""
    export = Export(decode="level")
    model = export.model()
    for tensor in model.graph.initializer:
        if tensor.dims and list(tensor.dims)[-1] == 2 and tensor.data_type == TensorProto.FLOAT:  # the grids
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(NotYoloxError, match="cannot tell whether the export is decoded"):
        recognise(tmp_path / "model.onnx")


def test_says_that_a_serving_graph_is_built_already(tmp_path: Path) -> None:
    fused = fuse(recognise(Export().save(tmp_path / "yolox.onnx")), 20, ["a", "b", "c"])
    onnx.save(fused, str(tmp_path / "model.onnx"))
    with pytest.raises(NotYoloxError, match="already a serving graph built by pinstream; serve it as it is"):
        recognise(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", r"empty \(0 bytes\)"),
        (b"a text file, not a model\n", "not an ONNX model"),
        (b"\xff\xd8\xff\xe0 JFIF", "not an ONNX model"),
        (b"\n", "not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=message) as raised:
        recognise(path)
    assert str(path) in str(raised.value)
    assert not isinstance(raised.value, NotYoloxError)


def test_a_truncated_file_and_a_directory(tmp_path: Path) -> None:
    path = Export().save(tmp_path / "model.onnx")
    content = path.read_bytes()
    for kept in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(BuildError, match=r"not an ONNX model|ONNX Runtime cannot load"):
            recognise(path)
    with pytest.raises(BuildError, match="is a directory; expected the path of an ONNX file"):
        recognise(tmp_path)


def test_an_operator_that_onnx_runtime_does_not_know(tmp_path: Path) -> None:
    model = Export().model()
    behind(model, helper.make_node("EfficientNMS_TRT", ["output"], ["changed"], domain="trt.plugins"))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(BuildError, match=r"ONNX Runtime cannot load the model.*EfficientNMS_TRT"):
        recognise(tmp_path / "model.onnx")


def test_an_operator_whose_name_is_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Export().save(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"Concat", b"\xffoncat"))
    model = onnx.load(str(path))
    # Older ones say nothing but the kind of their error.
    said = r"(.*codec can't decode|InvalidGraph)"
    with pytest.raises(BuildError, match=f"ONNX Runtime cannot load the model: {said}") as caught:
        open_session(model, path)
    assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == "", "ONNX Runtime has said something on its own"
