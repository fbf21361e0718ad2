"""INT8 for YOLOX serving graphs: explicit Q/DQ by ONNX Runtime's quantizer, calibrated on pictures.

Convolutions are quantized, everything else stays as it is: weights per channel, the inputs per tensor, all of them
symmetric with a zero point of 0, which is what TensorRT takes. An input's range is the mean of its ranges in the single
pictures: the outliers of one would otherwise cost all others a bit or two.

Convolutions that stay in FP32, by what they cost in average precision (measured on the built-in model, see
docs/accuracy.md): the first, whose input is the picture itself; depthwise ones, which have next to no weights; the
branch of every head that boxes and objectness are made from; and the last of every branch.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter

from pinstream.errors import first_line
from pinstream_cli.build_error import BuildError
from pinstream_cli.onnx_files import opset_of
from pinstream_cli.yolox_graph import INPUT
from pinstream_cli.yolox_reference import Image, letterbox

MOST_PICTURES = 64
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Scales per channel came to QuantizeLinear with it.
_OPSET = 13


@dataclass(frozen=True)
class Quantization:
    """How a graph was quantized.

    Attributes:
        convolutions: How many are in INT8.
        kept: How many are not.
        pictures: How many it was calibrated on.
    """

    convolutions: int
    kept: int
    pictures: int


def calibration_pictures(directory: Path) -> list[Path]:
    """The pictures of a directory to calibrate on: all, or MOST_PICTURES evenly spread over their names' order.

    Raises:
        BuildError: There is no such directory, or no picture in it.
    """
    if not directory.is_dir():
        raise BuildError(f"--int8 {directory} is not a directory; name one with pictures like those to be served")
    pictures = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise BuildError(
            f"--int8 {directory}: no picture in it ({', '.join(sorted(SUFFIXES))}); "
            f"put some {MOST_PICTURES} there, like those to be served"
        )
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), MOST_PICTURES)).round().astype(int)
    return [pictures[index] for index in chosen]


def quantize(graph: Any, pictures: Sequence[Path]) -> tuple[Any, Quantization]:
    """Quantizes a serving graph.

    Args:
        graph: The onnx.ModelProto that `yolox_graph.fuse` made. It is left as it is.
        pictures: Image files of any size.

    Returns:
        A new onnx.ModelProto, and how it was made.

    Raises:
        BuildError: A picture cannot be read, or ONNX Runtime's quantizer fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    height, width = (int(dim.dim_value) for dim in graph.graph.input[0].type.tensor_type.shape.dim[1:3])
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    kept = sensitive(graph.graph)
    with tempfile.TemporaryDirectory(prefix="pinstream-int8-") as scratch, _quiet():
        out = Path(scratch) / "model.onnx"
        try:
            quantize_static(
                _at_opset(graph),
                out,
                _Reader(pictures, (height, width)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=sorted(kept),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "CalibMovingAverage": True,
                    # TensorRT adds biases in FP32, and quantizes what a convolution gives where its reader wants it.
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )
            quantized = onnx.load(str(out))
            onnx.checker.check_model(quantized, full_check=True)
        except BuildError:
            raise
        except Exception as error:  # ONNX, its checker and the quantizer share no base class
            raise BuildError(f"ONNX Runtime cannot quantize the serving graph: {first_line(error)}") from error
    helper.set_model_props(quantized, {entry.key: entry.value for entry in graph.metadata_props})
    return quantized, Quantization(len(convolutions) - len(kept), len(kept), len(pictures))


def sensitive(graph: Any) -> set[str]:
    """Names of the convolutions of a serving graph that stay in FP32 (module docstring)."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    after = _outputs_reached(graph)
    kept = {convolutions[0].name}
    for node in convolutions:
        depthwise = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        # A last one reaches no other. A head's class branch ends in one convolution, its other branch in two; what both
        # are made from ends in all three.
        if depthwise or len(after[node.name]) in (0, 2):
            kept.add(node.name)
    return kept


def _outputs_reached(graph: Any) -> dict[str, frozenset[str]]:
    """By convolution, those behind it that no other follows; empty for these themselves."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    behind: dict[str, frozenset[str]] = {}
    # Makers stand before readers, so that from the end on a node's readers are known.
    reached: dict[str, frozenset[str]] = {}
    for node in reversed(graph.node):
        after = frozenset[str]().union(*(reached[reader.output[0]] for name in node.output for reader in readers[name]))
        if node.op_type == "Conv":
            behind[node.name] = after
            after = after or frozenset({node.name})
        reached[node.output[0]] = after
    return behind


class _Reader:
    """Gives pictures to ONNX Runtime's calibration, one at a time."""

    def __init__(self, pictures: Sequence[Path], size: tuple[int, int]) -> None:
        self._left, self._size = iter(pictures), size

    def get_next(self) -> dict[str, Image] | None:
        """The next picture, letterboxed: `images` UINT8 [1, H, W, 3]; None after the last."""
        path = next(self._left, None)
        return None if path is None else {INPUT: _load(path, self._size)[None]}


def _load(path: Path, size: tuple[int, int]) -> Image:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise BuildError(f"{path}: not an image that OpenCV can read; take it out of the pictures for --int8")
    return letterbox(image.astype(np.uint8, copy=False), size)


def _at_opset(graph: Any) -> Any:
    """A copy of a graph, at opset 13 or later. The quantizer works on what it is given."""
    if opset_of(graph) >= _OPSET:
        return copy.deepcopy(graph)
    return version_converter.convert_version(graph, _OPSET)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the quantizer prints and logs about its progress."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
