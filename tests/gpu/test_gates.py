"""Gates: how precise and how fast the built-in model is on the GPU in FP32, FP16 and INT8, against FP32 on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from pinstream.batching import Request
from pinstream.engines import Engine
from pinstream.errors import ModelFileError
from pinstream.loop import Loop
from pinstream.tensors import Array
from pinstream_cli.yolox_service import build_service
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.held_out import HeldOut, held_out, precision, write_training_pictures

MODEL = Path(__file__).parents[2] / "models" / "shapes_nano.onnx"
PICTURES, CALIBRATION_PICTURES = 200, 64
BATCH = 8
ROUNDS = 5
# How a plan is built, and what it may lose in average precision. FP32 is multiplied in TF32 by TensorRT for RTX, unless
# told not to.
PLANS: dict[str, tuple[dict[str, Any], float]] = {
    "exact": ({"tf32": False}, 0.0005),
    "fp32": ({}, 0.002),
    "fp16": ({"precision": "fp16"}, 0.002),
    "int8": ({}, 0.01),
}


@pytest.fixture(scope="module")
def pictures() -> HeldOut:
    return held_out(PICTURES, processes=os.cpu_count() or 2)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The serving graph to build each precision from."""
    folder = tmp_path_factory.mktemp("graphs")
    calibration = write_training_pictures(folder / "pictures", CALIBRATION_PICTURES, os.cpu_count() or 2)
    build_service(MODEL, folder / "fp32")
    build_service(MODEL, folder / "int8", int8=calibration)
    single, quantized = folder / "fp32" / "model.onnx", folder / "int8" / "model.onnx"
    return {kind: quantized if kind == "int8" else single for kind in PLANS}


@pytest.fixture(scope="module")
def expected(graphs: dict[str, Path], pictures: HeldOut) -> float:
    """AP of FP32 by ONNX Runtime on the CPU."""
    session = ort.InferenceSession(str(graphs["fp32"]), providers=["CPUExecutionProvider"])
    return precision([session.run(None, {"images": image[None]})[0][0] for image in pictures.images], pictures)


def candidates(engine: Engine, images: Array) -> list[Array]:
    """What an engine gives for each picture, sent as requests of up to eight."""
    found: list[Array] = []
    for answer in Loop(engine).run(requests_of(images)):
        assert answer.error is None
        found += list(answer.outputs["candidates"].copy())
    return found


def requests_of(images: Array) -> list[Request]:
    parts = np.split(images, range(BATCH, len(images), BATCH))
    return [Request({"images": part}, len(part), frozenset({"candidates"})) for part in parts]


def images_per_second(engines: Sequence[Engine], images: Array) -> list[float]:
    """Medians of rounds that take turns; the first round of each warms it up."""
    requests = requests_of(images)
    rates: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS + 1):
        for engine, measured in zip(engines, rates, strict=True):
            started = time.perf_counter()
            Loop(engine).run(requests)
            measured.append(len(images) / (time.perf_counter() - started))
    return [median(measured[1:]) for measured in rates]


@pytest.mark.parametrize("kind", PLANS)
def test_average_precision_on_the_gpu_is_the_cpu_s(
    build: BuildPlan,
    load: OpenPlan,
    graphs: dict[str, Path],
    pictures: HeldOut,
    expected: float,
    kind: str,
    record_property: Callable[[str, object], None],
) -> None:
    assert expected > 0.8
    wishes, loss = PLANS[kind]
    try:
        plan = build(graphs[kind], batch_sizes=(BATCH,), **wishes)
    except ModelFileError as error:
        if kind == "int8" and "no convolutions in INT8" in str(error):
            pytest.skip(str(error))
        raise
    engine = load(plan)
    found = precision(candidates(engine, pictures.images), pictures)
    record_property("ap", round(found, 4))
    record_property("ap_on_the_cpu", round(expected, 4))
    if kind != "exact":  # in whose process nothing runs in TF32, as FP32 does otherwise
        single = load(build(graphs["fp32"], batch_sizes=(BATCH,)))
        rate, single_rate = images_per_second([engine, single], pictures.images)
        record_property("images_per_s", round(rate))
        record_property("ratio_to_fp32", round(rate / single_rate, 3))
    assert found == pytest.approx(expected, abs=loss)
