"""What half precision changes in the boxes of a YOLOX serving graph, measured in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pinstream.plans.half import to_half
from pinstream_cli.onnx_files import load_onnx, open_session, run_session
from pinstream_cli.yolox_graph import INPUT, OUTPUT, PICKED, exact_nodes
from pinstream_cli.yolox_reference import load_letterboxed, structured_image

# Candidates below it are noise to whoever uses the detector.
_VISIBLE_SCORE = 0.25


@dataclass(frozen=True)
class HalfError:
    """How far FP16 is from FP32, over the candidates that score 0.25 or more in either.

    Attributes:
        candidates: How many were compared; 0 where nothing was to be seen on any image.
        max_box_error_px: The largest difference of a box coordinate, in letterbox pixels.
        max_score_error: The largest difference of a score.
    """

    candidates: int
    max_box_error_px: float
    max_score_error: float

    def __str__(self) -> str:
        if not self.candidates:
            return "boxes not compared with FP32: nothing was found; give a picture with --image"
        return (
            f"boxes differ from FP32 by at most {self.max_box_error_px:.2g} px, scores by {self.max_score_error:.2g} "
            f"({self.candidates} candidates)"
        )


def half_error(graph: Path, fp32_nodes: Sequence[str] = (), images: Sequence[Path] = ()) -> HalfError:
    """Compares a serving graph in FP16 with itself in FP32, anchor by anchor.

    Args:
        graph: The serving graph, in FP32.
        fp32_nodes: Patterns of node names that stay in FP32, besides those the graph names itself.
        images: Image files of any size, besides a drawn scene.

    Raises:
        BuildError: An image or the graph cannot be read, or ONNX Runtime fails.
        ModelFileError: The graph cannot be converted.
    """
    single = load_onnx(graph)
    half = to_half(single, (*fp32_nodes, *exact_nodes(single)))
    sessions = [open_session(model, graph, [PICKED]) for model in (single, half)]
    size = tuple(int(dim.dim_value) for dim in single.graph.input[0].type.tensor_type.shape.dim[1:3])
    probes = [structured_image((size[0], size[1])), *(load_letterboxed(path, (size[0], size[1])) for path in images)]
    box_errors, score_errors = [], []
    for probe in probes:
        feed = {INPUT: probe[None]}
        (rows, picked), (half_rows, half_picked) = (
            (candidates[0], anchors[0])
            for candidates, anchors in (run_session(session, [OUTPUT, PICKED], feed, graph) for session in sessions)
        )
        _, here, there = np.intersect1d(picked, half_picked, return_indices=True)
        difference = np.abs(rows[here, :5] - half_rows[there, :5])
        visible = np.maximum(rows[here, 4], half_rows[there, 4]) >= _VISIBLE_SCORE
        box_errors.append(difference[visible, :4])
        score_errors.append(difference[visible, 4])
    boxes, scores = np.concatenate(box_errors), np.concatenate(score_errors)
    return HalfError(len(boxes), float(boxes.max(initial=0)), float(scores.max(initial=0)))
