"""Building where there is a GPU: `pinstream build`, explicit quantization, and AUTO_BUILD in a served model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from pinstream import cuda, sidecar
from pinstream.engines import find_model_file, open_engine
from pinstream.engines.flavour import Flavour
from pinstream.errors import EngineError, ModelFileError
from pinstream.options import Options
from pinstream_cli.build import build as build_command
from pinstream_cli.errors import CommandError
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.serving import parameters, place
from tests.gpu.test_engine import FP32, answer, pixels, reference
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import running
from tests.server.test_plain_models import infer
from tests.shared_files import shared_model


def test_a_build_says_what_it_was_made_for_and_leaves_its_kernels_compiled(
    flavour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "service"
    words = [shared_model(), "-o", out, "--plan", "--precision", "fp16", "--batch-sizes", "1,4"]
    result = CliRunner().invoke(build_command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    section = sidecar.read(out / "model.json").sections["tensorrt"]
    assert section["flavour"] == flavour.name
    assert section["gpu"] == cuda.device_name(0)
    assert section["compute_capability"] == cuda.compute_capability(0)
    assert section["cuda"] == cuda.runtime_version()
    if not flavour.is_rtx:
        return
    assert f"kernels    compiled for {cuda.device_name(0)}" in result.output
    caches = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "pinstream" / "jit").iterdir()}
    assert len(caches) == 2
    began = time.monotonic()
    open_engine(find_model_file(out, Options()), Options()).close()
    record_property("seconds_of_a_warm_load", round(time.monotonic() - began, 3))
    # Nothing was compiled that was not there.
    assert {path: path.stat().st_mtime_ns for path in caches} == caches


@pytest.mark.parametrize(("dtype", "largest"), [(np.dtype("int8"), 100), (np.dtype(ml_dtypes.float8_e4m3fn), 15)])
def test_an_explicitly_quantized_graph(
    build: BuildPlan, load: OpenPlan, tmp_path: Path, dtype: np.dtype[Any], largest: int
) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w": rng.integers(-largest, largest, (16, 32)).astype(dtype),
        "x_scale": np.array(0.05, np.float32),
        "w_scale": np.array(0.01, np.float32),
        "zero": np.zeros((), dtype),
    }
    onnx = onnx_models.save(
        tmp_path / "quantized.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "x_scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 16])],
        [("y", TensorProto.FLOAT, ["batch", 32])],
        weights,
        opset=19,  # FP8 begins there
    )
    x = rng.normal(size=(5, 16)).astype(np.float32)
    settings = ort.SessionOptions()
    # ONNX Runtime's optimisation takes FP8 for INT8 here, and refuses what comes of it.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(onnx), settings, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    got = answer(load(build(onnx, batch_sizes=(1, 8))), "y", x=x)["y"]
    # A value between two of FP8 may be rounded to either: half a step of x, by weights of 0.15 at most, 16 times.
    np.testing.assert_allclose(got, expected, atol=1e-3 if dtype == np.int8 else 0.02)
    assert np.abs(expected).max() > 0.5


def test_exact_fp32_is_exact_or_says_what_to_do(
    flavour: Flavour, build: BuildPlan, load: OpenPlan, tmp_path: Path, record_property: Any
) -> None:
    """A network with a matrix product, for which not every TensorRT has kernels: then only the message is looked at.

    test_accuracy.py holds the numbers of one that has its kernels everywhere.
    """
    refused, engine = "", None
    try:
        # Building runs the plan once, so what has no kernels shows there; a loaded plan may still lack some.
        engine = load(build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(4,), tf32=False))
    except (EngineError, ModelFileError) as error:
        refused = str(error)
    record_property("numbers_looked_at", int(not refused))
    if refused:
        assert flavour.is_rtx, "TensorRT has kernels without TF32 for every network"
        advice = "; it has no kernels without TF32 for this network: build it without --no-tf32"
        assert re.search(f": .*cudnn_graph.*{advice}", refused), refused
        return
    got = answer(engine, "probabilities", pixels=pixels(4))["probabilities"]
    np.testing.assert_allclose(got, reference(pixels(4)), atol=2e-5)


def test_auto_build_builds_what_only_tensorrt_itself_refuses(flavour: Flavour, tmp_path: Path) -> None:
    onnx_models.classifier(tmp_path / "model.onnx")
    foreign = np.random.default_rng(3).bytes(5000)
    (tmp_path / "model.plan").write_bytes(foreign)
    with pytest.raises(ModelFileError, match=f"cannot be loaded by {flavour}.*`pinstream build MODEL.onnx --plan -o"):
        open_engine(tmp_path / "model.plan", Options())
    options = Options(auto_build=True, cache_dir=str(tmp_path / "cache"))
    engine = open_engine(tmp_path / "model.plan", options)
    got = answer(engine, "probabilities", pixels=pixels(3))["probabilities"]
    engine.close()
    np.testing.assert_allclose(got, reference(pixels(3)), atol=FP32)
    assert (tmp_path / "model.plan").read_bytes() == foreign


def test_a_cache_that_cannot_be_costs_only_time(
    build: BuildPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2))
    (tmp_path / "file").write_text("no directory")
    options = Options(cache_dir=str(tmp_path / "file"))
    engine = open_engine(find_model_file(plan, options), options)
    got = answer(engine, "probabilities", pixels=pixels(2))["probabilities"]
    engine.close()
    np.testing.assert_allclose(got, reference(pixels(2)), atol=FP32)
    assert ("cannot be read" in caplog.text) == ("cannot be written" in caplog.text)


def test_a_damaged_cache_of_kernels_is_said_and_made_again(
    flavour: Flavour, build: BuildPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not flavour.is_rtx:
        pytest.skip("only TensorRT for RTX compiles kernels where they run")
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(2,))
    options = Options(cache_dir=str(tmp_path / "cache"))

    def loaded() -> Path:
        """The cache's file after a load and a batch."""
        engine = open_engine(find_model_file(plan, options), options)
        got = answer(engine, "probabilities", pixels=pixels(2))["probabilities"]
        np.testing.assert_allclose(got, reference(pixels(2)), atol=FP32)
        engine.close()
        (file,) = (tmp_path / "cache" / "jit").iterdir()
        return file

    file = loaded()
    damaged = np.random.default_rng(5).bytes(file.stat().st_size)
    file.write_bytes(damaged)
    for _ in range(2):
        assert loaded() == file
        assert caplog.text.count(f"the JIT cache {file} is of no use and is made again") == 1, caplog.text
        assert file.read_bytes() != damaged
    # An update of the driver makes another cache: TensorRT passes over that of the old one without a word.
    assert re.fullmatch(r"\d{3}(\.\d+)+", cuda.driver_version())
    assert cuda.driver_version() in file.name


def test_instances_of_the_cpu_are_refused(build: BuildPlan, tmp_path: Path) -> None:
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1,))
    place(plan, tmp_path / "repository", "misplaced", ONE_LINE + "instance_group { kind: KIND_CPU }\n")
    refused = pytest.raises(CommandError, match=r"instance_group has KIND_CPU.*set kind: KIND_GPU")
    with refused, running(repositories=[tmp_path / "repository"]):
        pass


@pytest.mark.parametrize("completed", [True, False], ids=["completed", "by-itself"])
def test_auto_build_builds_once_for_all_instances(flavour: Any, tmp_path: Path, completed: bool) -> None:
    """Whoever completes the configuration comes first and builds; where nobody does, two instances want to at once."""
    wishes = parameters(AUTO_BUILD="true", SHARE_ENGINE="off", CACHE_DIR=str(tmp_path / "cache"))
    two = "max_batch_size: 4\ninstance_group { count: 2 kind: KIND_GPU }\n"
    tensors = (
        'input { name: "pixels" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }\n'
        'output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }\n'
    )
    onnx_models.classifier(add_model(tmp_path / "repository", "built", ONE_LINE + two + tensors + wishes))
    extra = [] if completed else ["--disable-auto-complete-config"]
    with running(repositories=[tmp_path / "repository"], extra=extra) as server:
        got = infer(server, "built", pixels=pixels(3)).as_numpy("probabilities")
        np.testing.assert_allclose(got, reference(pixels(3)), atol=FP32)
    entries = [path for path in (tmp_path / "cache" / "plans").iterdir() if path.is_dir()]
    assert len(entries) == 1
    text = server.console.getvalue()
    # Who completes the configuration may build without a word.
    told = {text.count(f"built {plan.name}") for plan in entries[0].glob("*.plan")}
    assert told <= ({0, 1} if completed else {1}), text
