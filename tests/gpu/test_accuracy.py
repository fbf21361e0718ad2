"""A real YOLOX-nano on the GPU against ONNX Runtime, at every bucket and at odd batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from pinstream.batching import Request
from pinstream.loop import Loop
from pinstream.tensors import Array
from pinstream_cli.build import build_service
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.shared_files import shared_image, shared_model

# Largest difference from ONNX Runtime in FP32 on the CPU, for candidates of a score of at least 0.1: score, box in
# pixels. FP32 multiplies in TF32 by TensorRT's default; FP16 has 11 bits of mantissa.
TOLERANCES = {"fp32": (0.005, 0.5), "fp16": (0.04, 3.0)}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The serving graph of YOLOX-nano."""
    out = tmp_path_factory.mktemp("nano")
    build_service(shared_model(), out)
    return out / "model.onnx"


@pytest.fixture(scope="module")
def images() -> Array:
    """Real pictures, uint8 [24,416,416,3]: the dog in other places, sizes and lights."""
    dog = cv2.imread(str(shared_image()))
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(24):
        canvas = np.full((416, 416, 3), 114, np.uint8)
        width = int(rng.integers(250, 417))
        resized = cv2.resize(dog, (width, width * 3 // 4))
        resized = resized[:, ::-1] if i % 2 else resized
        lit = (resized * rng.uniform(0.6, 1.0)).astype(np.uint8)
        x, y = int(rng.integers(0, 417 - width)), int(rng.integers(0, 417 - lit.shape[0]))
        canvas[y : y + lit.shape[0], x : x + width] = lit
        pictures.append(canvas)
    return np.stack(pictures)


@pytest.fixture(scope="module")
def expected(graph: Path, images: Array) -> Array:
    """Candidates by ONNX Runtime on the CPU."""
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": part[None]})[0] for part in images])


def assert_same_candidates(got: Array, expected: Array, precision: str) -> None:
    """Every candidate of a score of 0.1 has its counterpart: same class, score and box within tolerance."""
    score_tolerance, box_tolerance = TOLERANCES[precision]
    assert np.isfinite(got).all()
    strong = expected[expected[:, 4] >= 0.1]
    assert len(strong) > 0
    for x1, y1, x2, y2, score, label in strong:
        same = got[got[:, 5] == label]
        distance = np.abs(same[:, :4] - [x1, y1, x2, y2]).max(axis=1)
        near = same[distance <= box_tolerance]
        assert len(near), f"no box of class {label:.0f} within {box_tolerance} px of {(x1, y1, x2, y2)}"
        assert np.abs(near[:, 4] - score).min() <= score_tolerance


def requests_of(images: Array, sizes: list[int]) -> list[Request]:
    parts = np.split(images[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Request({"images": part}, len(part), frozenset({"candidates"})) for part in parts]


SIZES: dict[str, dict[str, Any]] = {"static": {"batch_sizes": (1, 4, 8)}, "dynamic": {"max_batch": 8}}
WISHES: list[Any] = [
    pytest.param({"precision": precision, **sizes}, id=f"{precision}-{name}")
    for precision in ("fp32", "fp16")
    for name, sizes in SIZES.items()
]


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("wishes", WISHES)
def test_every_bucket_and_odd_batches_equal_onnx_runtime(
    build: BuildPlan, load: OpenPlan, graph: Path, images: Array, expected: Array, wishes: dict[str, Any], graphs: str
) -> None:
    loop = Loop(load(build(graph, **wishes), cuda_graphs=graphs))
    for sizes in ([1], [4], [8], [3], [7], [5, 1, 2], [1] * 13, [24], [9, 2, 11, 1]):
        answers = loop.run(requests_of(images, sizes))
        start = 0
        for size, answer in zip(sizes, answers, strict=True):
            assert answer.error is None
            candidates = answer.outputs["candidates"].copy()
            assert candidates.shape == (size, 300, 6)
            for i in range(size):
                assert_same_candidates(candidates[i], expected[start + i], wishes["precision"])
            start += size


def test_a_dynamic_plan_with_captured_batch_sizes(
    build: BuildPlan, load: OpenPlan, graph: Path, images: Array, expected: Array
) -> None:
    engine: Any = load(build(graph, max_batch=8), cuda_graphs="on", graph_batch_sizes=(1, 4, 8))
    assert engine.spec.batch.buckets == (1, 4, 8)
    assert engine.captured == 3 * len(engine.slots)
    for answer, reference in zip(Loop(engine).run(requests_of(images, [1] * 11)), expected, strict=False):
        assert_same_candidates(answer.outputs["candidates"].copy()[0], reference, "fp32")
