"""Small ONNX models that keep YOLOX's contract, laid out as its export tool lays them out. Made from a seed, no torch.

A Focus stem, three levels of strided convolutions with SiLU, one upsampling between levels, decoupled heads, and at the
end what the variant asks for. The weights are random, the arithmetic around them is YOLOX's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
WIDTH = 8

# none: undecoded, the tool's default. concat: --decode_in_inference of today. scatter: that of YOLOX 0.3 and older,
# which assigned in place and so has every index baked in, the batch's too. level: decoded before the levels are joined.
Decode = Literal["none", "concat", "scatter", "level"]


@dataclass(frozen=True)
class Export:
    """How an export is made.

    Attributes:
        size: Height and width of the input.
        classes: Number of classes.
        batch: The static batch size; None for a --dynamic export.
        decode: Whether and how boxes are decoded in the graph.
        full_shapes: Reshape to all sizes in numbers, rather than to [batch, channels, -1].
        resize_by: Upsample by scales, or to a size in which the batch is baked in.
        constant_nodes: Constants as nodes, as without onnxsim, rather than as initializers.
        opset: The operator set.
        input_name: The input's name.
        output_name: The output's name.
        sigmoid: Whether scores go through a sigmoid.
        seed: Of the weights.
    """

    size: tuple[int, int] = (64, 64)
    classes: int = 3
    batch: int | None = 1
    decode: Decode = "none"
    full_shapes: bool = False
    resize_by: Literal["scales", "sizes"] = "scales"
    constant_nodes: bool = False
    opset: int = 11
    input_name: str = "images"
    output_name: str = "output"
    sigmoid: bool = True
    seed: int = 0

    @property
    def anchors(self) -> int:
        """Rows of the output."""
        return sum((self.size[0] // stride) * (self.size[1] // stride) for stride in STRIDES)

    def model(self) -> Any:
        """The onnx.ModelProto."""
        return _Writer(self).write()

    def save(self, path: Path) -> Path:
        """Writes the model to a file."""
        onnx.save(self.model(), str(path))
        return path


def save_classifier(path: Path, size: int = 64) -> Path:
    """Writes a model that is not YOLOX: float32 [batch, 3, size, size] to float32 [batch, 3]."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@dataclass
class _Writer:
    """Writes the nodes of one export in order."""

    export: Export
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.export.seed)
        self._batch = self.export.batch or 1

    def write(self) -> Any:
        export = self.export
        height, width = export.size
        stem = self._silu(self._conv(self._focus(export.input_name), 12, WIDTH, scale=1 / 64))
        quarter = self._silu(self._conv(stem, WIDTH, WIDTH, stride=2))
        levels = [self._silu(self._conv(quarter, WIDTH, WIDTH, stride=2))]
        for _ in (1, 2):
            levels.append(self._silu(self._conv(levels[-1], WIDTH, WIDTH, stride=2)))
        levels[1] = self._conv(
            self._node("Concat", [levels[1], self._upsample(levels[2], height // 16, width // 16)], axis=1),
            2 * WIDTH,
            WIDTH,
        )
        rows = [self._head(level, stride) for level, stride in zip(levels, STRIDES, strict=True)]
        if export.decode == "level":
            result = self._node("Concat", [self._decode_level(row, i) for i, row in enumerate(rows)], axis=1)
        else:
            result = self._node("Transpose", [self._node("Concat", rows, axis=2)], perm=[0, 2, 1])
        if export.decode == "concat":
            result = self._decode(result, _cells(export.size))
        elif export.decode == "scatter":
            result = self._decode_in_place(result)
        self.nodes[-1].output[0] = export.output_name
        return self._finish()

    def _finish(self) -> Any:
        export = self.export
        batch = "batch" if export.batch is None else export.batch
        # torch names the rows of a --dynamic export as well, although they cannot vary.
        rows = "Concatoutput_dim_1" if export.batch is None else export.anchors
        graph = helper.make_graph(
            self.nodes,
            "torch-jit-export",
            [helper.make_tensor_value_info(export.input_name, TensorProto.FLOAT, [batch, 3, *export.size])],
            [helper.make_tensor_value_info(export.output_name, TensorProto.FLOAT, [batch, rows, 5 + export.classes])],
            self.initializers,
        )
        opset = [helper.make_opsetid("", export.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=6 if export.opset < 15 else 8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _head(self, level: str, stride: int) -> str:
        """One level: boxes, objectness and classes, flattened to [batch, 5 + classes, cells]."""
        parts = [self._conv(level, WIDTH, channels, kernel=1, scale=0.3) for channels in (4, 1, self.export.classes)]
        if self.export.sigmoid:
            parts[1:] = [self._node("Sigmoid", [part]) for part in parts[1:]]
        return self._flatten(self._node("Concat", parts, axis=1), stride)

    def _flatten(self, tensor: str, stride: int) -> str:
        if self.export.batch is None:  # as torch writes flatten(start_dim=2) where a dimension is dynamic
            shape = self._node("Slice", [self._node("Shape", [tensor]), *self._constants([0], [2], [0])])
            target = self._node("Concat", [shape, self._constant(np.array([-1]))], axis=0)
            return self._node("Reshape", [tensor, target])
        cells = (self.export.size[0] // stride) * (self.export.size[1] // stride) if self.export.full_shapes else -1
        return self._node("Reshape", [tensor, self._constant(np.array([self._batch, 5 + self.export.classes, cells]))])

    def _decode_level(self, rows: str, index: int) -> str:
        cells = _cells(self.export.size)
        level = cells[cells[:, 2] == STRIDES[index]]
        return self._decode(self._node("Transpose", [rows], perm=[0, 2, 1]), level)

    def _decode(self, rows: str, cells: NDArray[np.float32]) -> str:
        grid, stride = self._constant(cells[None, :, :2]), self._constant(cells[None, :, 2:])
        centre = self._node("Mul", [self._node("Add", [self._columns(rows, 0, 2), grid]), stride])
        size = self._node("Mul", [self._node("Exp", [self._columns(rows, 2, 4)]), stride])
        return self._node("Concat", [centre, size, self._columns(rows, 4, 5 + self.export.classes)], axis=2)

    def _decode_in_place(self, rows: str) -> str:
        cells = _cells(self.export.size)
        grid, stride = self._constant(cells[None, :, :2]), self._constant(cells[None, :, 2:])
        centre = self._node("Mul", [self._node("Add", [self._columns(rows, 0, 2), grid]), stride])
        rows = self._node("ScatterND", [rows, self._places(0), centre])
        size = self._node("Mul", [self._node("Exp", [self._columns(rows, 2, 4)]), stride])
        return self._node("ScatterND", [rows, self._places(2), size])

    def _places(self, column: int) -> str:
        places = np.indices((self._batch, self.export.anchors, 2)) + np.array([0, 0, column]).reshape(3, 1, 1, 1)
        return self._constant(np.moveaxis(places, 0, -1))

    def _focus(self, image: str) -> str:
        """Every other pixel into channels: top left, bottom left, top right, bottom right."""
        patches = []
        for column, row in ((0, 0), (0, 1), (1, 0), (1, 1)):
            lines = self._node("Slice", [image, *self._constants([row], [2**31 - 1], [2], [2])])
            patches.append(self._node("Slice", [lines, *self._constants([column], [2**31 - 1], [3], [2])]))
        return self._node("Concat", patches, axis=1)

    def _upsample(self, tensor: str, height: int, width: int) -> str:
        mode = {"mode": "nearest"}
        scales = self._constant(np.array([1, 1, 2, 2], np.float32))
        if self.export.opset < 11:
            return self._node("Resize", [tensor, scales], **mode)
        mode |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        none = self._constant(np.array([], np.float32))
        if self.export.resize_by == "scales" or self.export.batch is None:
            return self._node("Resize", [tensor, none, scales], **mode)
        sizes = self._constant(np.array([self._batch, WIDTH, height, width]))
        return self._node("Resize", [tensor, none, none, sizes], **mode)

    def _conv(
        self, tensor: str, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, scale: float = 1
    ) -> str:
        weight = self._random.normal(0, 1.5 * scale / np.sqrt(inputs * kernel**2), (outputs, inputs, kernel, kernel))
        bias = self._random.normal(0, 0.1, outputs)
        constants = [self._constant(array.astype(np.float32), node=False) for array in (weight, bias)]
        pad = kernel // 2
        return self._node("Conv", [tensor, *constants], strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)

    def _silu(self, tensor: str) -> str:
        return self._node("Mul", [tensor, self._node("Sigmoid", [tensor])])

    def _columns(self, tensor: str, start: int, stop: int) -> str:
        return self._node("Slice", [tensor, *self._constants([start], [stop], [2])])

    def _constants(self, *values: Sequence[int]) -> list[str]:
        return [self._constant(np.array(value)) for value in values]

    def _constant(self, value: NDArray[Any], *, node: bool = True) -> str:
        name = f"onnx::constant_{len(self.nodes) + len(self.initializers)}"
        tensor = numpy_helper.from_array(value, name)
        if self.export.constant_nodes and node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def _node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"onnx::{op_type}_{len(self.nodes) + len(self.initializers)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name


def _cells(size: tuple[int, int]) -> NDArray[np.float32]:
    """[N, 3]: column, row, stride of every anchor."""
    cells = [
        (column, row, stride)
        for stride in STRIDES
        for row in range(size[0] // stride)
        for column in range(size[1] // stride)
    ]
    return np.array(cells, np.float32)
