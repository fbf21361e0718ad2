"""What an FP16 graph loses for good, tried out once in ONNX Runtime on the CPU: numbers too large for it, and NaN.

ONNX Runtime computes much of an FP16 graph in FP32, where the CPU is faster so, and hides what overflows on the way. So
the FP32 graph is asked how large the numbers get that are FP16 in the other; and both of them for NaN and infinities.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pinstream.plans.half_range import LARGEST

LOGGER = logging.getLogger("pinstream.plans")
# Of one run. What takes longer is not checked.
TIMEOUT_S = 60.0

Feed = Mapping[str, NDArray[Any]]


def losses_in_half(single: Any, half: Any, shapes: Mapping[str, Sequence[int]], timeout_s: float = TIMEOUT_S) -> str:
    """Compare a graph in FP16 with itself in FP32, on random numbers and on zeros.

    Args:
        single: The onnx.ModelProto in FP32, its weights loaded.
        half: The same in FP16, its tensors of the same names.
        shapes: The whole shape of every input.
        timeout_s: How long a run may take.

    Returns:
        What is lost and what to do about it, in one line; empty where nothing is, or where ONNX Runtime cannot run it,
        which the log says.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(half).graph
        halves = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
        halves = {name.removesuffix("/half") for name in halves}  # what to_half calls it where both types are there
        probed, peaks = _with_peaks(single, halves)
        sessions = _open(probed), _open(half)
        for what, feed in _feeds(single, shapes).items():
            expected, found = (_run(session, feed, timeout_s) for session in sessions)
            complaint = _overflow(peaks, expected) or _not_finite(expected, found)
            if complaint:
                return f"on {what} {complaint}; keep such nodes in FP32 (--fp32-node), or build it with precision fp32"
    except Exception as error:  # plugins, shapes that do not fit, 2 GB, time: there is nothing to compare then
        LOGGER.info("FP16 was not compared with FP32: %s", str(error).split("\n", 1)[0])
    return ""


def _with_peaks(model: Any, names: set[str]) -> tuple[Any, dict[str, str]]:
    """The graph with one more output for each of these tensors: its largest magnitude.

    Returns:
        The graph, and the node that makes a tensor by the name of its new output.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    peaks = {}
    for node in model.graph.node:
        for name in names.intersection(node.output):
            peak = f"{name}/peak"
            peaks[peak] = node.name or f"that makes {name} ({node.op_type})"
            probed.graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
            probed.graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [peak], keepdims=0))
            probed.graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
    return probed, peaks


def _open(model: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it complains about is nothing to the user, who does not serve this graph
    # Constants are not folded: that takes as long as the model wants, and a run ends when its time is over.
    return ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
    )


def _run(session: Any, feed: Feed, timeout_s: float) -> dict[str, NDArray[Any]]:
    import onnxruntime as ort

    run_options = ort.RunOptions()
    timer = threading.Timer(timeout_s, setattr, (run_options, "terminate", True))
    timer.start()
    try:
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed, run_options), strict=True))
    finally:
        timer.cancel()


def _feeds(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Feed]:
    """Zeros bring empty masks and divisions by nothing to light, random numbers the rest."""
    random, zeros = {}, {}
    rng = np.random.default_rng(0)
    for value in model.graph.input:
        if value.name in shapes:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            zeros[value.name] = np.zeros(shapes[value.name], dtype)
            # Integers may be indices: 0 and 1 fit every table. Bytes are pixels.
            most = 256 if dtype == np.uint8 else 2
            numbers = rng.normal if dtype.kind == "f" else lambda size, most=most: rng.integers(0, most, size)
            random[value.name] = np.asarray(numbers(size=shapes[value.name])).astype(dtype)
    return {"random numbers": random, "zeros": zeros}


def _overflow(peaks: Mapping[str, str], expected: Feed) -> str:
    for peak, node in peaks.items():
        largest = float(np.max(expected[peak]))
        if np.isfinite(largest) and largest > LARGEST:
            return f"node {node} makes {largest:.3g}, and FP16 ends at {LARGEST:.0f}"
    return ""


def _not_finite(expected: Feed, found: Feed) -> str:
    for name, values in found.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all() and np.isfinite(expected[name]).all():
            return f"output '{name}' has NaN or infinities in FP16 and none in FP32"
    return ""
