"""The proof of a serving graph: its candidates against the export it was made from, read by plain NumPy.

Both run in ONNX Runtime on the same images: noise, a drawn scene, its mirror image, and whatever real images are given;
one by one, and three different ones as a batch, which shows items that leak into each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinstream_cli.build_error import BuildError
from pinstream_cli.onnx_files import open_session, run_session
from pinstream_cli.yolox_graph import INPUT, OUTPUT, PICKED
from pinstream_cli.yolox_recognise import YoloxExport, network_input
from pinstream_cli.yolox_reference import (
    Anchors,
    Floats,
    Image,
    anchor_cells,
    decode,
    load_letterboxed,
    random_image,
    read_anchors,
    structured_image,
)

# What another order of the same float32 additions may change, with room to spare: deep networks are off by about
# 1e-5 in scores and 1e-3 of a pixel in boxes. A box of several times the image's size may be off in proportion.
SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE_PX = 0.05
BOX_TOLERANCE_RELATIVE = 1e-4

_ASK = "nothing was written; please report this with the way the model was exported"


@dataclass(frozen=True)
class Check:
    """One comparison that passed.

    Attributes:
        name: The images, by name.
        batch: How many went through the serving graph at once.
        max_box_error_px: The largest difference of a box coordinate, in letterbox pixels.
        max_score_error: The largest difference of a score.
    """

    name: str
    batch: int
    max_box_error_px: float
    max_score_error: float


def verify(export: YoloxExport, fused: Any, images: Sequence[Path] = ()) -> tuple[Check, ...]:
    """Compares a serving graph with its export.

    Args:
        export: The export.
        fused: The serving graph, an onnx.ModelProto.
        images: Image files of any size; they are letterboxed.

    Raises:
        BuildError: The two differ, an image cannot be read, or ONNX Runtime fails.
    """
    scene = structured_image(export.input_size)
    probes: dict[str, Image] = {
        "random": random_image(export.input_size, seed=1),
        "scene": scene,
        "mirrored scene": np.ascontiguousarray(scene[:, ::-1]),
    }
    probes |= {path.name: load_letterboxed(path, export.input_size) for path in images}
    expected = dict(zip(probes, _read_export(export, list(probes.values())), strict=True))
    session = open_session(fused, export.path, [PICKED])

    def check(names: Sequence[str]) -> Check:
        feed = {INPUT: np.stack([probes[name] for name in names])}
        candidates, picked = run_session(session, [OUTPUT, PICKED], feed, export.path)
        errors = [
            compare(candidates[item], picked[item], expected[name], f"{name!r} in a batch of {len(names)}")
            for item, name in enumerate(names)
        ]
        box_error, score_error = np.max(errors, axis=0)
        return Check(" + ".join(names), len(names), float(box_error), float(score_error))

    names = list(probes)
    return (*(check([name]) for name in names), check([*names[:2], names[-1]]))


def compare(candidates: Floats, picked: NDArray[np.int64], expected: Anchors, where: str) -> tuple[float, float]:
    """Compares the candidates of one image with what the export gives for it.

    Args:
        candidates: FP32 [K, 6], the serving graph's output.
        picked: INT64 [K], the anchor each candidate was made from. With it, candidates of nearly equal scores may swap
            places without a false alarm, and a wrong place still shows.
        expected: The anchors of this one image, without the batch dimension.
        where: The image, for the error's text.

    Returns:
        The largest error of a box coordinate in pixels, and of a score.

    Raises:
        BuildError: They differ by more than the tolerances at the top of this module.
    """
    boxes, scores, classes = candidates[:, :4], candidates[:, 4], candidates[:, 5].astype(np.int64)
    if not np.isfinite(candidates).all():
        raise BuildError(f"{where}: the serving graph gives NaN or infinity where the export does not; {_ASK}")
    if np.unique(picked).size != picked.size or (np.diff(scores) > 0).any():
        raise BuildError(f"{where}: candidates must be distinct anchors, best first, and are not; {_ASK}")

    best = np.sort(expected.scores)[::-1][: len(scores)]
    score_error = max(_largest(scores - best), _largest(scores - expected.scores[picked]))
    if score_error > SCORE_TOLERANCE:
        raise BuildError(f"{where}: scores differ by {score_error:.3g}, allowed are {SCORE_TOLERANCE:g}; {_ASK}")

    box_errors = np.abs(boxes - expected.boxes[picked])
    allowed = BOX_TOLERANCE_PX + BOX_TOLERANCE_RELATIVE * np.abs(expected.boxes[picked])
    if (box_errors > allowed).any():
        row = int(np.argmax((box_errors - allowed).max(axis=1)))
        raise BuildError(
            f"{where}: boxes differ by {box_errors.max():.3g} px, allowed are {allowed[row].max():.3g} "
            f"(candidate {row}: {boxes[row].tolist()}, expected {expected.boxes[picked[row]].tolist()}); {_ASK}"
        )

    class_scores = expected.class_scores[picked]
    if (classes != candidates[:, 5]).any() or classes.min() < 0 or classes.max() >= class_scores.shape[1]:
        raise BuildError(f"{where}: classes must be whole numbers below {class_scores.shape[1]}, and are not; {_ASK}")
    chosen = np.take_along_axis(class_scores, classes[:, None], axis=1)[:, 0]
    class_error = _largest(class_scores.max(axis=1) - chosen)
    if class_error > SCORE_TOLERANCE:
        raise BuildError(f"{where}: a candidate's class scores {class_error:.3g} below the best class; {_ASK}")
    return _largest(box_errors), score_error


def _read_export(export: YoloxExport, images: Sequence[Image]) -> list[Anchors]:
    """The export's own reading of each image, in batches of the size it was exported with."""
    session = open_session(export.model, export.path)
    cells = anchor_cells(export.input_size)
    batch = export.batch or 1
    readings = []
    for image in images:
        feed = {export.input_name: network_input([image] * batch)}
        (output,) = run_session(session, [export.output_name], feed, export.path)
        anchors = read_anchors(output[0] if export.output_decoded else decode(output[0], cells))
        if not all(np.isfinite(part).all() for part in (anchors.boxes, anchors.scores)):
            raise BuildError(f"{export.path}: the export itself gives NaN or infinity for an image; export it again")
        readings.append(anchors)
    return readings


def _largest(difference: Floats) -> float:
    return float(np.abs(difference).max())
