"""A real YOLOX-nano on the GPU against ONNX Runtime, at every bucket and at odd batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from pinstream.batching import Request
from pinstream.engines.flavour import Flavour
from pinstream.errors import EngineError
from pinstream.loop import Loop
from pinstream.tensors import Array
from pinstream_cli.yolox_service import build_service
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.shared_files import shared_image, shared_model

# What a candidate of a score of at least 0.25 may lose against ONNX Runtime in FP32 on the CPU: score, and overlap of
# the two boxes. TensorRT for RTX multiplies FP32 in TF32 unless told otherwise, and rounds worse than in FP16.
TOLERANCES = {"exact": (0.001, 0.999), "fp32": (0.12, 0.94), "fp16": (0.05, 0.93)}
STRONG = 0.25


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


def overlaps(box: Array, boxes: Array) -> Array:
    """Intersection over union of one box [4] with others [n,4]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = (high - low).clip(0).prod(axis=1)
    return np.asarray(both / (np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - both))


def largest_loss(got: Array, expected: Array) -> tuple[float, float]:
    """Of every strong candidate and the best overlapping one of its class: largest score difference, least overlap."""
    assert np.isfinite(got).all()
    strong = expected[expected[:, 4] >= STRONG]
    assert len(strong) > 0
    score_loss, overlap = 0.0, 1.0
    for candidate in strong:
        same = got[got[:, 5] == candidate[5]]
        found = overlaps(candidate[:4], same[:, :4])
        # Neighbouring cells give nearly the same box: of those that overlap as well, the one with the nearest score.
        near = same[found >= found.max() - 0.01]
        score_loss = max(score_loss, float(np.abs(near[:, 4] - candidate[4]).min()))
        overlap = min(overlap, float(found.max()))
    return score_loss, overlap


def assert_same_candidates(got: Array, expected: Array, precision: str, record: Callable[[str, object], None]) -> None:
    score_loss, overlap = largest_loss(got, expected)
    record("score_loss", round(score_loss, 5))
    record("overlap", round(overlap, 5))
    assert score_loss <= TOLERANCES[precision][0]
    assert overlap >= TOLERANCES[precision][1]


def requests_of(images: Array, sizes: list[int]) -> list[Request]:
    parts = np.split(images[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Request({"images": part}, len(part), frozenset({"candidates"})) for part in parts]


SIZES: dict[str, dict[str, Any]] = {"static": {"batch_sizes": (1, 4, 8)}, "dynamic": {"max_batch": 8}}
WISHES: list[Any] = [
    pytest.param({"precision": precision, **sizes}, id=f"{precision}-{name}")
    for precision in ("fp32", "fp16")
    for name, sizes in SIZES.items()
]
# All sizes of a plan that is built without a wish.
WISHES.append(pytest.param({"precision": "fp16"}, id="fp16-default"))
EXACT: dict[str, Any] = {"precision": "fp32", "tf32": False, **SIZES["static"]}
WISHES.append(pytest.param(EXACT, id="exact-static"))


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("wishes", WISHES)
def test_every_bucket_and_odd_batches_equal_onnx_runtime(
    build: BuildPlan,
    load: OpenPlan,
    graph: Path,
    images: Array,
    expected: Array,
    wishes: dict[str, Any],
    graphs: str,
    record_property: Callable[[str, object], None],
) -> None:
    loop = Loop(load(build(graph, **wishes), cuda_graphs=graphs))
    precision = "exact" if wishes.get("tf32") is False else wishes["precision"]
    for sizes in ([1], [4], [8], [3], [7], [5, 1, 2], [1] * 13, [24], [9, 2, 11, 1], [17]):
        answers = loop.run(requests_of(images, sizes))
        start = 0
        for size, answer in zip(sizes, answers, strict=True):
            assert answer.error is None
            candidates = answer.outputs["candidates"].copy()
            assert candidates.shape == (size, 300, 6)
            for i in range(size):
                assert_same_candidates(candidates[i], expected[start + i], precision, record_property)
            start += size


def test_a_dynamic_plan_s_graphs_give_the_same_in_every_slot_whichever_ran_before(
    build: BuildPlan, load: OpenPlan, graph: Path, images: Array, expected: Array, record_property: Any
) -> None:
    sizes = (1, 4, 8)
    engine: Any = load(build(graph, max_batch=8), cuda_graphs="on", graph_batch_sizes=sizes)
    assert engine.spec.batch.buckets == sizes
    assert engine.captured == len(sizes) * len(engine.slots)
    # All of them are captured from one execution context, and it must not matter which one is launched after which.
    rng = np.random.default_rng(0)
    launched = set()
    for _ in range(20):
        batches = [(slot, int(rng.choice(sizes)), int(rng.integers(16))) for slot in engine.slots]
        for slot, size, first in batches:
            slot.begin({"images": (size, *images.shape[1:])})
            slot.put("images", images[first : first + size], 0)
            engine.enqueue(slot, frozenset({"candidates"}))
        for slot, size, first in batches:
            candidates = engine.wait(slot)["candidates"]
            assert engine.used_graph(slot)
            launched.add((id(slot), size))
            for got, reference in zip(candidates, expected[first : first + size], strict=True):
                assert_same_candidates(got, reference, "fp32", record_property)
    assert len(launched) == engine.captured


@pytest.mark.parametrize("kind", ["fp32", "exact"])
def test_a_plan_without_its_sidecar_is_loaded_as_it_was_built(
    build: BuildPlan,
    load: OpenPlan,
    graph: Path,
    images: Array,
    expected: Array,
    tmp_path: Path,
    record_property: Any,
    kind: str,
) -> None:
    # TensorRT for RTX refuses a plan built without TF32 where TF32 is allowed, and the other way round.
    plan = build(graph, **(EXACT if kind == "exact" else {**EXACT, "tf32": None}))
    (tmp_path / "model.plan").write_bytes((plan / "model.b4.plan").read_bytes())
    (answer,) = Loop(load(tmp_path)).run(requests_of(images, [4]))
    assert answer.error is None
    for got, reference in zip(answer.outputs["candidates"].copy(), expected, strict=False):
        assert_same_candidates(got, reference, kind, record_property)


def test_a_plan_without_tf32_is_refused_where_one_with_it_has_run(
    build: BuildPlan, load: OpenPlan, graph: Path, flavour: Flavour
) -> None:
    if not flavour.is_rtx:
        pytest.skip("only TensorRT for RTX is told by the environment")
    plan = build(graph, **EXACT)
    load(build(graph, **{**EXACT, "tf32": None}))
    with pytest.raises(EngineError, match="load the plan in a process of its own"):
        load(plan)
