"""Is this ONNX file a YOLOX export, and of which kind? Recognised by its signature, then by running it.

Names and node patterns differ between PyTorch versions, simplifiers and YOLOX releases, so nothing here relies on them.
What every YOLOX export shares is arithmetic, and that is looked at while it runs in ONNX Runtime:

* the output is [batch, N, 5 + C] with one row for each cell of the grids of stride 8, 16 and 32;
* objectness and class scores have been through a sigmoid, they lie in 0..1;
* somewhere in the graph the *head*, the first tensor of the output's own shape, appears undecoded. An undecoded export
  hands out the head itself; one made with --decode_in_inference hands out decode(head), to the last digit. Cutting the
  graph at the head makes both kinds the same, and drops the decoding nodes (some releases bake the batch into them).

An export that decodes before such a tensor exists (level by level) is told by its values: the centre of a decoded box
moves by one stride from one cell to the next, an undecoded one does not move. That must agree with the presence of an
Exp node, without which nothing can decode; where the two contradict each other, the file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pinstream_cli.build_error import NotYoloxError
from pinstream_cli.onnx_files import dims, inferred_ranks, load_onnx, open_session, plain_opset, run_session, signature
from pinstream_cli.yolox_reference import (
    STRIDES,
    Floats,
    Image,
    anchor_cells,
    anchor_count,
    decode,
    random_image,
    structured_image,
)

# The metadata key that marks a graph as built by us.
GRAPH_KEY = "pinstream.graph"
SERVING_GRAPH = "yolox"


@dataclass(frozen=True)
class YoloxExport:
    """An ONNX file that is known to be YOLOX.

    Attributes:
        path: Where it was read from.
        model: Its content, at opset 11 or later.
        input_name: FP32 [batch, 3, H, W], BGR 0-255.
        output_name: FP32 [batch, N, 5 + C].
        batch: The batch size baked into the export, or None where that is dynamic.
        input_size: Height and width in pixels.
        num_classes: C.
        head: The tensor to go on from; its shape is the output's.
        decoded: Whether `head` holds pixels already, rather than offsets within the grid.
        output_decoded: Whether the export's own output does.
    """

    path: Path
    model: Any
    input_name: str
    output_name: str
    batch: int | None
    input_size: tuple[int, int]
    num_classes: int
    head: str
    decoded: bool
    output_decoded: bool

    @property
    def num_anchors(self) -> int:
        """N, the number of rows of the output."""
        return anchor_count(self.input_size)


def recognise(path: Path) -> YoloxExport:
    """Reads an ONNX file and makes sure that it is a YOLOX export.

    Raises:
        NotYoloxError: It is not, and this is what was looked for and what was found.
        BuildError: The file is missing, empty, not ONNX, or ONNX Runtime cannot run it.
    """
    model = load_onnx(path)
    if any(entry.key == GRAPH_KEY for entry in model.metadata_props):
        raise NotYoloxError(f"{path}: already a serving graph built by pinstream; serve it as it is")
    source, batch, input_size = _image_input(model, path)
    output = _single_output(model, path)
    # Only now: a model of another kind need not be one that can be converted or run here.
    model = plain_opset(model, path)
    runs = _probe(model, source, batch, input_size, path)
    result = runs.pop(output)
    num_classes = _check_rows(result, input_size, path)
    head, decoded, output_decoded = _find_head(model, output, result, runs, input_size, path)
    return YoloxExport(path, model, source, output, batch, input_size, num_classes, head, decoded, output_decoded)


def recognised_shape(path: str, progress: Callable[[str], None]) -> tuple[int, int, int]:
    """`recognise` for `apart`: height and width of the input, and the number of classes."""
    progress(f"reading {Path(path).name}")
    export = recognise(Path(path))
    return *export.input_size, export.num_classes


def network_input(images: Sequence[Image]) -> Floats:
    """Images as the export's own input: FP32 [batch, 3, H, W], the values unchanged."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), dtype=np.float32)


def _image_input(model: Any, path: Path) -> tuple[str, int | None, tuple[int, int]]:
    """Name, batch size (None if dynamic) and (height, width) of the one image input."""
    # Before IR version 4 initializers were listed among the inputs as well.
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    expected = "YOLOX has one input, float32 [batch, 3, height, width]"
    found = f"found {signature(inputs)}"
    if len(inputs) != 1:
        raise NotYoloxError(f"{path}: not a YOLOX export: {expected}; {found}")
    tensor = inputs[0].type.tensor_type
    shape = dims(inputs[0])
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4 or shape[1] != 3:
        hint = "; export it in float32" if tensor.elem_type == onnx.TensorProto.FLOAT16 else ""
        raise NotYoloxError(f"{path}: not a YOLOX export: {expected}; {found}{hint}")
    batch, _, height, width = shape
    if not isinstance(height, int) or not isinstance(width, int):
        raise NotYoloxError(
            f"{path}: height and width must be fixed, only the batch may be dynamic; {found}; "
            "export with YOLOX's own tool, with or without --dynamic"
        )
    if height < STRIDES[-1] or width < STRIDES[-1] or height % STRIDES[-1] or width % STRIDES[-1]:
        raise NotYoloxError(f"{path}: not a YOLOX export: height and width are multiples of {STRIDES[-1]}; {found}")
    return inputs[0].name, batch if isinstance(batch, int) and batch > 0 else None, (height, width)


def _single_output(model: Any, path: Path) -> str:
    outputs = list(model.graph.output)
    shape = dims(outputs[0])
    # A tensor without a shape has rank 0 here; the run will show what it really is.
    if len(outputs) != 1 or len(shape) not in (0, 3):
        raise NotYoloxError(
            f"{path}: not a YOLOX export: YOLOX has one output, float32 [batch, anchors, 5 + classes]; "
            f"found {signature(outputs)}"
        )
    return str(outputs[0].name)


def _probe(model: Any, source: str, batch: int | None, input_size: tuple[int, int], path: Path) -> dict[str, Floats]:
    """Runs the model once: its output, and every tensor that may be the head, in graph order."""
    output = model.graph.output[0].name
    ranks = inferred_ranks(model)
    # The head is the end of a concatenation of the three levels, usually followed by a transposition.
    inner = [
        name
        for node in model.graph.node
        if node.op_type in ("Transpose", "Concat")
        for name in node.output
        if name != output and ranks.get(name, 3) == 3
    ]
    probes = [structured_image(input_size), random_image(input_size)]
    images = [probes[index % 2] for index in range(batch or 1)]
    session = open_session(model, path, inner)
    results = run_session(session, [*inner, output], {source: network_input(images)}, path)
    return dict(zip([*inner, output], results, strict=True))


def _check_rows(result: Any, input_size: tuple[int, int], path: Path) -> int:
    """Makes sure that an output has YOLOX's rows and columns; returns the number of classes."""
    height, width = input_size
    rows = anchor_count(input_size)
    found = f"found {result.dtype} {list(result.shape)}"
    if result.dtype != np.float32 or result.ndim != 3 or result.shape[1] != rows or result.shape[2] < 6:
        terms = " + ".join(f"{height // stride}x{width // stride}" for stride in STRIDES)
        raise NotYoloxError(
            f"{path}: not a YOLOX export: for an input of {height}x{width} its output is float32 [batch, {rows}, "
            f"5 + classes], a row for each cell of strides 8, 16 and 32 ({terms}); {found}"
        )
    if not np.isfinite(result).all():
        raise NotYoloxError(f"{path}: the export gives NaN or infinity for an ordinary image; export it again")
    lowest, highest = float(result[..., 4:].min()), float(result[..., 4:].max())
    if lowest < 0 or highest > 1:
        raise NotYoloxError(
            f"{path}: not a YOLOX export: objectness and class scores (column 4 on) lie in 0..1 after the sigmoid; "
            f"found {lowest:.3g}..{highest:.3g}; export with YOLOX's own tools/export_onnx.py"
        )
    return int(result.shape[2]) - 5


def _find_head(
    model: Any, output: str, result: Floats, inner: dict[str, Floats], input_size: tuple[int, int], path: Path
) -> tuple[str, bool, bool]:
    """The tensor to go on from, whether it is decoded, and whether the output is (module docstring)."""
    cells = anchor_cells(input_size)
    head = next((name for name, tensor in inner.items() if tensor.shape == result.shape), output)
    raw = inner.get(head, result)
    if not _looks_decoded(raw, cells):
        if np.array_equal(result, raw):
            _check_no_exp(model, path)
            return head, False, False
        expected = decode(raw, cells)
        if np.allclose(result, expected, rtol=1e-4, atol=1e-2):
            return head, False, True
        raise NotYoloxError(
            f"{path}: not a YOLOX export: its output is neither the head (tensor {head!r}) nor the head decoded as "
            f"(xy + grid) x stride, exp(wh) x stride; largest difference from the latter {_gap(result, expected):.3g}"
        )
    # Decoded where the head first appears: the output must be that very tensor, and hold sizes made by an exponential.
    if not np.array_equal(result, raw) or not (raw[..., 2:4] > 0).all():
        raise NotYoloxError(
            f"{path}: not a YOLOX export: its box centres follow the grid as if decoded, but widths and heights are "
            f"not all above 0 (lowest {raw[..., 2:4].min():.3g}), or later nodes change them"
        )
    return head, True, True


def _looks_decoded(rows: Floats, cells: Floats) -> bool:
    """Whether box centres follow the grid: slope of x / stride over the column, and of y / stride over the row.

    About 1 for decoded rows, about 0 for undecoded ones; taken on the finest level, which has the most cells and sees
    the least of the image, so that boxes cannot all be drawn to one object.
    """
    finest = cells[:, 2] == STRIDES[0]
    slopes = []
    for axis in (0, 1):
        position = cells[finest, axis] - cells[finest, axis].mean()
        centre = rows[:, finest, axis].mean(axis=0) / STRIDES[0]
        slopes.append(float(position @ centre / (position @ position)))
    return float(np.mean(slopes)) > 0.5


def _check_no_exp(model: Any, path: Path) -> None:
    if any(node.op_type == "Exp" for node in model.graph.node):
        raise NotYoloxError(
            f"{path}: cannot tell whether the export is decoded: it contains Exp, as --decode_in_inference exports do, "
            "but its box centres do not follow the grid; export again without --decode_in_inference"
        )


def _gap(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max())
