"""What bad input is given to inside one process, and what has to hold: a function a target, from chance to an outcome.

An outcome is a short word for statistics. What must not happen is an AssertionError, any other exception, or the end of
the process.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pinstream import sidecar as sidecars
from pinstream.batching import Request, check_request
from pinstream.engines import is_shared, open_engine
from pinstream.engines.base import Engine
from pinstream.engines.flavour import Flavour, is_installed, load_flavour
from pinstream.engines.plan_source import described_plans
from pinstream.errors import InvalidRequest, ModelFileError, PinstreamError
from pinstream.loop import Loop
from pinstream.options import PARAMETERS, PYTHON_BACKEND_PARAMETERS, Options
from pinstream.plans import BuildSpec, build_plan
from pinstream.preflight import check_plan
from pinstream.tensors import NUMPY_DTYPES, Array
from tests import onnx_models
from tests.fuzz.configs import config
from tests.fuzz.documented import documented_in
from tests.fuzz.mutate import INTERESTING, Chance, generator, mutated, mutated_behind, mutated_json
from tests.fuzz.pictures import corpus, liars
from tests.fuzz.references import refused_or_right
from yolox_steps.decode import decode, prepare_process
from yolox_steps.detector import DetectorError, read_detector
from yolox_steps.errors import RequestError
from yolox_steps.letterbox import letterbox
from yolox_steps.parameters import Parameters

MAX_PIXELS = 100_000
LONGEST_MESSAGE = 1000

Target = Callable[[Chance], str]


def _assert_message(error: Exception) -> None:
    text = str(error)
    assert text.strip(), f"{type(error).__name__} without a word"
    assert len(text) <= LONGEST_MESSAGE, f"a message of {len(text)} characters"
    assert "Traceback" not in text
    assert 'File "' not in text
    assert documented_in(text), f"docs/errors.md does not have: {text}"


@cache
def _pictures() -> tuple[bytes, ...]:
    prepare_process()
    return corpus() + liars()


def picture(chance: Chance) -> str:
    """A damaged picture through decoding and letterboxing."""
    data = mutated(_pictures(), chance)
    try:
        image = decode(data, MAX_PIXELS)
    except RequestError as error:
        _assert_message(error)
        return str(error).partition(":")[0]
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.shape[0] * image.shape[1] <= MAX_PIXELS, f"a bomb got through: {image.shape}"
    letterbox(image, np.empty((32, 32, 3), np.uint8))
    return "decoded"


VALUES: tuple[Any, ...] = (
    0,
    1,
    -1,
    0.5,
    1.5,
    float("nan"),
    float("inf"),
    10**40,
    True,
    None,
    "",
    "0.5",
    "é" * 50,
    [],
    {},
)
NAMES = ("conf", "iou", "max_det", "triton_enable_empty_final_response", "CONF", "", "\0", "conf ", "a" * 300)


def parameters(chance: Chance) -> str:
    """Request parameters of any name, type and value."""
    rng = generator(chance)
    given = {rng.choice(NAMES): rng.choice((*VALUES, *INTERESTING)) for _ in range(rng.randint(1, 4))}
    known = Parameters({}, 100)
    try:
        thresholds = known.of_request(json.dumps(given))
    except RequestError as error:
        _assert_message(error)
        return "refused"
    assert 0 <= thresholds.conf <= 1
    assert 0 <= thresholds.iou <= 1
    assert 1 <= thresholds.max_det <= 100
    return "taken"


@cache
def _directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@cache
def _engines() -> tuple[Engine, ...]:
    directory = _directory()
    files = [onnx_models.two_by_two(directory / "a.onnx"), onnx_models.identity(directory / "b.onnx")]
    files += [onnx_models.whole(directory / "c.onnx"), onnx_models.dynamic_width(directory / "d.onnx")]
    return tuple(open_engine(file, Options(max_batch_size=4)) for file in files)


def tensors(chance: Chance) -> str:
    """Tensors of any name, type, rank, shape and value through the check, and those that pass through the engine."""
    rng = generator(chance)
    engine = rng.choice(_engines())
    inputs: dict[str, Array] = {}
    for tensor in engine.spec.inputs:
        right = rng.random() < 0.85
        shape = [max(1, abs(d)) if d > 0 else rng.randint(1, 14) for d in tensor.shape]
        if engine.spec.batch:
            shape.insert(0, rng.choice((1, 1, 2, 4)) if right else rng.choice((0, 1, 5, 300)))
        if not right:
            rng.choice(_DISTORTIONS)(shape, rng)
        inputs[tensor.name if right or rng.random() < 0.7 else "other"] = any_array(
            tensor.dtype if right else rng.choice(tuple(NUMPY_DTYPES)), shape, rng
        )
    try:
        items = check_request(inputs, engine.spec, 4)
    except InvalidRequest as error:
        _assert_message(error)
        return "refused"
    answer = Loop(engine).run([Request(inputs, items, frozenset(t.name for t in engine.spec.outputs))])[0]
    if answer.error is not None:
        _assert_message(answer.error)
        return "engine error"
    assert all(array.shape[0] == items for array in answer.outputs.values() if engine.spec.batch)
    return "answered"


def any_array(dtype: str, shape: list[int], rng: random.Random) -> Array:
    """An array of Triton's `dtype`, with NaN and Inf in it where it can have them."""
    count = int(np.prod(shape))
    if dtype == "BYTES":
        texts = np.empty(count, np.object_)
        texts[:] = [rng.choice((b"", b"text", b"\xff\xfe", b"\0", rng.randbytes(9))) for _ in range(count)]
        return texts.reshape(shape)
    data = np.frombuffer(bytearray(rng.randbytes(count * NUMPY_DTYPES[dtype].itemsize)), np.uint8)
    if dtype == "BOOL":
        return (data & 1).astype(bool).reshape(shape)
    array = data.view(NUMPY_DTYPES[dtype])
    if count and array.dtype.kind == "f" and rng.random() < 0.5:
        # Random bits hardly ever make these.
        array[rng.randrange(count)] = rng.choice((np.nan, np.inf, -np.inf))
    return array.reshape(shape)


def _another_rank(shape: list[int], rng: random.Random) -> None:
    shape.insert(rng.randint(0, len(shape)), rng.choice((0, 1, 2)))


def _another_size(shape: list[int], rng: random.Random) -> None:
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 13, 1000))


_DISTORTIONS = (lambda shape, rng: shape.clear(), _another_rank, _another_size)


@cache
def _sidecars() -> tuple[bytes, ...]:
    entry = sidecars.TensorEntry("images", "UINT8", (-1, 8, 8, 3))
    out = sidecars.TensorEntry("candidates", "FP32", (-1, 10, 6))
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4], "ranges": [{"min": [1, 4], "opt": [2, 4], "max": [4, 4]}]}
    plan = {"file": "model.plan", "inputs": [tensor], "outputs": [tensor], "sha256": "0" * 64, "bytes": 100}
    sections = {
        "plans": [plan],
        "tensorrt": {"flavour": "tensorrt_rtx", "version": "1.4.0.76", "options": {"precision": "fp16"}},
    }
    whole = sidecars.Sidecar("plan", "model.plan", "0" * 64, (entry,), (out,), ("cat", "dog"), sections)
    return (
        whole.to_json().encode(),
        json.dumps(json.loads(whole.to_json())).encode(),
        b"[]",
        b"null",
        b"1e999",
        b"[" * 100_000,
    )


def sidecar(chance: Chance) -> str:
    """A damaged model.json, to all that read one."""
    path = _directory() / "yolox_detector" / "1" / "model.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = _sidecars()
    rng = generator(chance)
    path.write_bytes(mutated(whole, rng, 2) if rng.random() < 0.5 else mutated_json(whole[0], rng, VALUES))
    (path.parent / "model.plan").write_bytes(b"vtrt" + bytes(96))
    refused = 0
    for read in (
        lambda: sidecars.read(path),
        lambda: described_plans(path.with_name("model.plan")),
        lambda: read_detector(_directory() / "any" / "1", "yolox_detector"),
        lambda: check_plan(path.with_name("model.plan"), _FLAVOUR, None, sidecars.read(path)),
    ):
        try:
            read()
        except (sidecars.SidecarError, DetectorError, ModelFileError) as error:
            _assert_message(error)
            refused += 1
    return f"refused by {refused} of 4 readers"


_FLAVOUR = Flavour("tensorrt_rtx", None, "1.4.0.76")


@cache
def _onnx_files() -> tuple[bytes, ...]:
    _engines()
    return tuple(file.read_bytes() for file in sorted(_directory().glob("?.onnx")))


def onnx(chance: Chance) -> str:
    """A damaged ONNX file, opened as the backend does it."""
    path = _directory() / "model.onnx"
    path.write_bytes(mutated(_onnx_files(), chance, 2))
    try:
        open_engine(path, Options()).close()
    except PinstreamError as error:
        _assert_message(error)
        return "refused"
    return "loaded"


def plan(chance: Chance) -> str:
    """A damaged plan, up to where TensorRT would be asked."""
    header = b"vtrt" + bytes(12) + (100).to_bytes(8, "little") + bytes((1, 4, 0, 76)) + b"vtrt" + b"\x3f" + bytes(67)
    path = _directory() / "model.plan"
    path.write_bytes(mutated((header, b"ftrt" + header[4:], b"PK\x03\x04" + header), chance))
    try:
        check_plan(path, _FLAVOUR, None)
    except ModelFileError as error:
        _assert_message(error)
        return "refused"
    return "passed on"


# What is looked at of a plan before TensorRT is asked.
PLAN_HEADER_BYTES = 64


@cache
def _built_plan() -> tuple[Flavour, bytes]:
    # Where there is a GPU its memory would be what this process grows with; tests/gpu has such plans.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    flavour = load_flavour("tensorrt_rtx")
    made = onnx_models.classifier(_directory() / "classifier.onnx")
    build_plan(made, _directory() / "built", BuildSpec(batch_sizes=(1,)), flavour)
    return flavour, (_directory() / "built" / "model.plan").read_bytes()


def plan_body(chance: Chance) -> str:
    """A plan with a damaged body to TensorRT, which without a GPU reads the whole file and then asks for one."""
    from pinstream.engines.trt_load import load_plans

    flavour, whole = _built_plan()
    path = _directory() / "model.plan"
    path.write_bytes(mutated_behind(whole, PLAN_HEADER_BYTES, chance))
    try:
        load_plans([path], path, Options(), flavour, None)
    except PinstreamError as error:
        _assert_message(error)
        return "read, but for the GPU" if "Cuda Runtime" in str(error) else "refused"
    return "loaded"


OPTION_NAMES = (*sorted(PARAMETERS | PYTHON_BACKEND_PARAMETERS), "WRONG")
OPTION_VALUES = (
    *("", "0", "1", "-1", "1,2", "1;2", "64", "99999999999999999999", "true", "yes", "no", "auto", "on", "off"),
    *("cpu", "gpu", "tensorrt", "../a.so", "é", "\0"),
)


def options(chance: Chance) -> str:
    """Parameters of config.pbtxt of any value, by themselves and held against each other."""
    rng = generator(chance)
    chosen = {rng.choice(OPTION_NAMES): {"string_value": rng.choice(OPTION_VALUES)} for _ in range(rng.randint(1, 3))}
    try:
        is_shared(Path("model.onnx"), Options.from_model_config({"parameters": chosen}))
    except PinstreamError as error:
        _assert_message(error)
        return "refused"
    return "taken"


def references(chance: Chance) -> str:
    """References to what lies in shared memory, good ones and made up ones."""
    outcome, error = refused_or_right(chance)
    if error:
        _assert_message(error)
    return outcome


# How many of each make up the long form; together well over 100,000.
TARGETS: dict[str, tuple[Target, int]] = {
    "picture": (picture, 100_000),
    "tensors": (tensors, 20_000),
    "parameters": (parameters, 10_000),
    "sidecar": (sidecar, 10_000),
    "onnx": (onnx, 5_000),
    "plan": (plan, 5_000),
    "options": (options, 5_000),
    "config": (config, 5_000),
    "references": (references, 20_000),
}
if is_installed("tensorrt_rtx"):
    TARGETS["plan_body"] = (plan_body, 20_000)


def everything(seed: int) -> str:
    """Each target in turn."""
    name, (target, _) = list(TARGETS.items())[seed % len(TARGETS)]
    return f"{name}: {target(seed // len(TARGETS))}"
