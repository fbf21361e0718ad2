"""ONNX -> plans by the real TensorRT-RTX, without a GPU: files, sidecars, refusals."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pinstream import sidecar
from pinstream.engines.flavour import Flavour
from pinstream.engines.profiles import PlanInfo, Range, model_spec
from pinstream.errors import ConfigError, ModelFileError
from pinstream.options import Options
from pinstream.plans import BuildSpec, build_plan, parse_shape
from pinstream.plans.graph import digest, inputs_of, outputs_of, read_graph, stated_precision
from pinstream.plans.jobs import PlanJob, plan_jobs
from pinstream.preflight import read_header, this_gpu
from tests import onnx_models
from tests.rtx import installed_rtx

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return onnx_models.classifier(tmp_path / "classifier.onnx")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def plans_in(directory: Path) -> list[PlanInfo]:
    return [PlanInfo.from_json(entry) for entry in sidecar.read(directory / "model.json").sections["plans"]]


def refused(rtx: Flavour, onnx_file: Path, **spec: Any) -> str:
    """Builds, expects a refusal that leaves nothing behind, and gives its text."""
    out = onnx_file.parent / "refused"
    with pytest.raises((ConfigError, ModelFileError)) as caught:
        build_plan(onnx_file, out, BuildSpec(**spec), rtx)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_static_plan_for_each_batch_size(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    progress: list[tuple[str, float]] = []
    built = build_plan(
        classifier, out, BuildSpec(batch_sizes=(4, 1)), rtx, progress=lambda *step: progress.append(step)
    )
    assert names(out) == ["model.b1.plan", "model.b4.plan", "model.json", "model.onnx"]
    written = sidecar.read(out / "model.json")
    assert (written.kind, written.file) == ("plan", "model.b1.plan")
    assert sidecar.check_model_file(out, written) == out / "model.b1.plan"
    assert written.inputs == (sidecar.TensorEntry("pixels", "FP32", (-1, 3, 8, 8)),)
    assert written.outputs == (sidecar.TensorEntry("probabilities", "FP32", (-1, 10)),)
    assert plans_in(out) == list(built.plans)
    for plan, size in zip(built.plans, (1, 4), strict=True):
        assert plan.file == f"model.b{size}.plan"
        assert plan.sha256 == sidecar.file_sha256(out / plan.file)
        assert plan.inputs[0].shape == (size, 3, 8, 8)
        assert plan.inputs[0].ranges == (Range(*[(size, 3, 8, 8)] * 3),)
        assert plan.outputs[0].shape == (size, 10)
    assert [entry["bytes"] for entry in written.sections["plans"]] == [
        (out / plan.file).stat().st_size for plan in built.plans
    ]
    batch = model_spec(built.plans, Options()).batch
    assert batch is not None
    assert batch.buckets == (1, 4)
    for plan in built.plans:
        fractions = [fraction for file, fraction in progress if file == plan.file]
        assert fractions == sorted(fractions)
        assert len(set(fractions)) > 5
        assert (fractions[0] < 0.5, fractions[-1]) == (True, 1.0)


def test_the_sidecar_says_what_built_the_plan_and_from_what(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    spec = BuildSpec(max_batch=8, compute_capabilities=("8.6", "12.0"), workspace_mb=64)
    built = build_plan(classifier, tmp_path / "out", spec, rtx)
    sections = json.loads((tmp_path / "out" / "model.json").read_text())
    gpu = this_gpu()
    assert sections["tensorrt"] == {
        "flavour": "tensorrt_rtx",
        "version": rtx.version,
        "compute_capability": gpu.compute_capability if gpu else None,
        "compute_capabilities": ["8.6", "12.0"],
        "gpu": gpu.name if gpu else None,
        "cuda": gpu.cuda if gpu else None,
        "precision": "fp32",
        "tf32": True,
        "version_compatible": False,
        "hardware_compatible": False,
        "options": json.loads(json.dumps(dataclasses.asdict(spec))),
        "arguments": [
            *("--max-batch", "8", "--compute-capability", "8.6", "--compute-capability", "12.0", "--workspace", "64"),
        ],
    }
    assert sections["source"] == {"file": "classifier.onnx", "sha256": digest(classifier)}
    assert sections["onnx"] == {"file": "model.onnx", "sha256": digest(classifier)}
    assert 0 < sections["build_seconds"] <= built.seconds + 0.001


def test_a_dynamic_plan_has_the_batch_in_its_profile(rtx: Flavour, tmp_path: Path) -> None:
    built = build_plan(onnx_models.two_by_two(tmp_path / "m.onnx"), tmp_path / "out", BuildSpec(max_batch=8), rtx)
    (plan,) = built.plans
    assert plan.file == "model.plan"
    assert [(t.name, t.dtype, t.shape, t.ranges) for t in plan.inputs] == [
        ("left", "FP32", (-1, 4), (Range((1, 4), (8, 4), (8, 4)),)),
        ("right", "INT64", (-1, 4), (Range((1, 4), (8, 4), (8, 4)),)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in plan.outputs] == [
        ("sum", "FP32", (-1, 4)),
        ("double", "INT64", (-1, 4)),
    ]
    batch = model_spec([plan], Options()).batch
    assert batch is not None
    assert (batch.buckets, batch.exact) == ((8,), True)


def test_further_dynamic_dimensions_and_several_profiles(rtx: Flavour, tmp_path: Path) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    shapes = tuple(parse_shape(text) for text in ("row:1:4:8", "row:8:16:32"))
    built = build_plan(model, tmp_path / "out", BuildSpec(batch_sizes=(2,), shapes=shapes), rtx)
    assert built.plans[0].inputs[0].shape == (2, -1)
    assert built.plans[0].inputs[0].ranges == (Range((2, 1), (2, 4), (2, 8)), Range((2, 8), (2, 16), (2, 32)))
    spec = model_spec(built.plans, Options())
    assert spec.inputs[0].bounds == (((1,), (8,)), ((8,), (32,)))
    # With the batch in the shapes, each profile has batch sizes of its own.
    whole = tuple(parse_shape(text) for text in ("row:1x1:1x4:1x8", "row:2x8:4x16:8x32"))
    built = build_plan(model, tmp_path / "whole", BuildSpec(shapes=whole), rtx)
    assert built.plans[0].inputs[0].ranges == (Range((1, 1), (1, 4), (1, 8)), Range((2, 8), (4, 16), (8, 32)))


def test_a_model_without_a_batch_dimension(rtx: Flavour, tmp_path: Path) -> None:
    shapes = (parse_shape("a:1:4:8"), parse_shape("b:2"))
    built = build_plan(onnx_models.whole(tmp_path / "m.onnx"), tmp_path / "out", BuildSpec(shapes=shapes), rtx)
    assert [t.ranges for t in built.plans[0].inputs] == [(Range((1,), (4,), (8,)),), (Range((2,), (2,), (2,)),)]


def test_the_values_of_a_shape_tensor_are_its_range(rtx: Flavour, tmp_path: Path) -> None:
    model = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [("x", FLOAT, [1, 4]), ("shape", INT64, [2])],
        [("y", FLOAT, ["rows", "columns"])],
    )
    built = build_plan(model, tmp_path / "out", BuildSpec(shapes=(parse_shape("shape:1x4:2x4:8x4"),)), rtx)
    x, shape = built.plans[0].inputs
    assert (x.host, shape.host) == (False, True)
    assert shape.ranges == (Range((1, 4), (2, 4), (8, 4)),)


def test_the_values_of_a_shape_tensor_may_be_negative(rtx: Flavour, tmp_path: Path) -> None:
    model = onnx_models.slice_from(tmp_path / "m.onnx", 16)
    spec = BuildSpec(shapes=(parse_shape("start:-5:0:9"),))
    assert parse_shape(spec.arguments()[1]) == spec.shapes[0]
    (plan,) = build_plan(model, tmp_path / "out", spec, rtx).plans
    assert [tensor.ranges for tensor in plan.inputs if tensor.host] == [(Range((-5,), (0,), (9,)),)]
    # Sizes may not be.
    sizes = BuildSpec(shapes=(parse_shape("a:-1:4:8"), parse_shape("b:2")))
    with pytest.raises(ConfigError, match="the shape -1 to 8 does not fit input 'a'"):
        build_plan(onnx_models.whole(tmp_path / "whole.onnx"), tmp_path / "whole", sizes, rtx)
    with pytest.raises(ConfigError, match=r"refuses the optimisation profile .*row.*: .*setDimensions"):
        build_plan(model, tmp_path / "out", BuildSpec(shapes=(*spec.shapes, parse_shape("row:-1:16:16"))), rtx)


def test_fp16_makes_a_smaller_plan_with_the_same_io(rtx: Flavour, tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x: Any = ("x", FLOAT, ["n", 512])
    y: Any = ("y", FLOAT, ["n", 512])
    model = onnx_models.save(tmp_path / "m.onnx", nodes, [x], [y], weights)
    sizes = {}
    for precision in ("fp32", "fp16"):
        spec = BuildSpec(precision=precision, batch_sizes=(4,))
        built = build_plan(model, tmp_path / precision, spec, rtx)
        assert [t.dtype for t in (*built.plans[0].inputs, *built.plans[0].outputs)] == ["FP32", "FP32"]
        assert built.sidecar.sections["tensorrt"]["precision"] == precision
        sizes[precision] = built.sizes[0]
    # Two bytes a weight less, and some kernels more.
    assert sizes["fp32"] - sizes["fp16"] > 512 * 512


def test_explicitly_quantized_graphs_are_built_as_they_are(rtx: Flavour, tmp_path: Path) -> None:
    weights: Any = {"w": np.eye(64, dtype=np.float32), "scale": np.float32(0.05), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    model = onnx_models.save(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 64])], weights)
    assert stated_precision(onnx.load(model)) == "int8"
    assert "the graph is quantized" in refused(rtx, model, precision="fp16")
    if this_gpu():
        built = build_plan(model, tmp_path / "out", BuildSpec(batch_sizes=(1,)), rtx)
        assert built.sidecar.sections["tensorrt"]["precision"] == "int8"
    else:
        assert "quantized graphs, for one, need it" in refused(rtx, model, batch_sizes=(1,))


def test_a_static_model_makes_one_plan_and_other_batch_sizes_are_refused(rtx: Flavour, tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "m.onnx", batch=2)
    built = build_plan(model, tmp_path / "out", BuildSpec(), rtx)
    assert names(built.directory) == ["model.json", "model.onnx", "model.plan"]
    assert built.sidecar.inputs[0].shape == (2, 3, 8, 8)
    assert "export the model with a dynamic batch dimension" in refused(rtx, model, batch_sizes=(1, 4))


def test_a_new_build_replaces_the_old_one_entirely(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_plan(classifier, out, BuildSpec(batch_sizes=(1, 2)), rtx)
    (out / "notes.txt").write_text("mine")
    build_plan(classifier, out, BuildSpec(max_batch=4), rtx)
    assert names(out) == ["model.json", "model.onnx", "model.plan", "notes.txt"]
    # From the model beside the plan, as on another machine; its origin is not forgotten.
    rebuilt = build_plan(out / "model.onnx", out, BuildSpec(batch_sizes=(1,)), rtx)
    assert names(out) == ["model.json", "model.onnx", "model.plan", "notes.txt"]
    assert rebuilt.sidecar.sections["source"]["file"] == "classifier.onnx"


def test_labels_and_sections_come_over_from_the_model_s_sidecar(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    beside = sidecar.Sidecar(
        "onnx", classifier.name, sidecar.file_sha256(classifier), (), (), ("cat", "dog"), {"yolox": {"candidates": 7}}
    )
    sidecar.write(tmp_path / "model.json", beside)
    spec = BuildSpec(batch_sizes=(1,))
    built = build_plan(classifier, tmp_path / "out", spec, rtx)
    assert built.sidecar.labels == ("cat", "dog")
    assert built.sidecar.sections["yolox"] == {"candidates": 7}
    # A sidecar of another file has nothing to say.
    sidecar.write(tmp_path / "model.json", dataclasses.replace(beside, sha256="0" * 64))
    assert build_plan(classifier, tmp_path / "other", spec, rtx).sidecar.labels == ()


def test_weights_in_a_file_of_their_own_are_found_and_counted(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    model = onnx.load(classifier)
    path = tmp_path / "large.onnx"
    onnx.save(model, path, save_as_external_data=True, location="large.bin", size_threshold=0)
    before = digest(path)
    build_plan(path, tmp_path / "out", BuildSpec(batch_sizes=(1,)), rtx)
    build_plan(path, tmp_path / "half", BuildSpec(precision="fp16", batch_sizes=(1,)), rtx)
    weights = (tmp_path / "large.bin").read_bytes()
    (tmp_path / "large.bin").write_bytes(weights[::-1])
    assert digest(path) != before
    (tmp_path / "large.bin").unlink()
    with pytest.raises(ModelFileError, match=r"keeps weights in .*large\.bin"):
        digest(path)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"compute_capabilities": ("9.0",)}, r"builds for .*8\.9, 12\.0 and not for 9\.0"),
        ({"version_compatible": True}, "builds no version or hardware compatible plans"),
        ({"shapes": (parse_shape("pixel:3x8x8"),)}, r"'pixel', but the inputs are 'pixels' \[batch, 3, 8, 8\]"),
        ({"shapes": (parse_shape("pixels:3x8x9"),)}, "3x8x9 to 3x8x9 does not fit input 'pixels'"),
        ({"shapes": (parse_shape("pixels:1x3x8x8"),), "max_batch": 4}, "leave that dimension out"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    rtx: Flavour, classifier: Path, spec: dict[str, Any], text: str
) -> None:
    message = refused(rtx, classifier, **spec)
    assert re.search(text, message), message


def test_current_needs_a_gpu(rtx: Flavour, classifier: Path) -> None:
    if this_gpu():
        pytest.skip("there is a GPU")
    assert "no GPU here" in refused(rtx, classifier, compute_capabilities=("current",))


def test_open_dimensions_are_asked_for_with_the_option_to_give(rtx: Flavour, tmp_path: Path) -> None:
    text = refused(rtx, onnx_models.dynamic_width(tmp_path / "m.onnx"))
    assert "input 'row' [batch, width]" in text
    assert "--shape row:N:N:N" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"\xff\xd8\xff\xe0 jpeg" * 9, "not an ONNX model"), (b"some text", "not an ONNX model")],
)
def test_files_that_are_no_model(rtx: Flavour, tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert text in refused(rtx, path)
    assert "no such file" in refused(rtx, tmp_path / "absent.onnx")


def test_what_tensorrt_cannot_take_is_named_with_its_node_and_a_way_out(rtx: Flavour, tmp_path: Path) -> None:
    x: Any = ("x", FLOAT, ["n", 4])
    y: Any = ("y", FLOAT, ["n", 4])
    path = tmp_path / "m.onnx"
    text = refused(
        rtx, onnx_models.unchecked(path, [helper.make_node("FooBar", ["x"], ["y"], "odd")], [x], [y]), max_batch=2
    )
    assert "node 0 'odd' (FooBar)" in text
    assert "Op type FooBar is not supported" in text
    assert text.endswith("replace the operator, or give the library of its plugin")

    k = helper.make_node("Constant", [], ["k"], value_ints=[4000])
    top = helper.make_node("TopK", ["x", "k"], ["y", "places"])
    wide: Any = [("x", FLOAT, ["n", 5000])], [("y", FLOAT, ["n", 4000])]
    text = refused(rtx, onnx_models.unchecked(path, [k, top], *wide), max_batch=2)
    assert "TensorRT selects at most 3840: lower K" in text

    most = helper.make_node("Constant", [], ["most"], value_ints=[5])
    nms = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["selected"])
    tensors: Any = [("boxes", FLOAT, [1, 10, 4]), ("scores", FLOAT, [1, 3, 10])], [("selected", INT64, ["n", 3])]
    assert "leave NMS out of the graph" in refused(rtx, onnx_models.unchecked(path, [most, nms], *tensors))

    text_io: Any = [("x", TensorProto.STRING, ["n"])], [("y", TensorProto.STRING, ["n"])]
    assert "no strings" in refused(
        rtx, onnx_models.unchecked(path, [helper.make_node("Identity", ["x"], ["y"])], *text_io), max_batch=2
    )


@pytest.mark.parametrize(("operator", "output"), [("Identity", TensorProto.INT8), ("Cast", FLOAT)])
def test_int8_inputs_are_refused_with_a_way_out(rtx: Flavour, tmp_path: Path, operator: str, output: int) -> None:
    nodes = [helper.make_node(operator, ["x"], ["y"], **({"to": output} if operator == "Cast" else {}))]
    model = onnx_models.save(tmp_path / "m.onnx", nodes, [("x", TensorProto.INT8, ["n", 4])], [("y", output, ["n", 4])])
    assert "no INT8 inputs and outputs: give it others and quantize inside" in refused(rtx, model, max_batch=2)


def test_an_interrupt_stops_the_build_and_leaves_nothing(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    def interrupt(file: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(classifier, tmp_path / "out", BuildSpec(batch_sizes=(1,)), rtx, progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_headers_name_version_size_and_compute_capabilities(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    for wanted, found in (((), ()), (("7.5",), ("7.5",)), (("12.0", "8.6"), ("8.6", "12.0")), (("8.0", "8.9"),) * 2):
        built = build_plan(classifier, tmp_path / "out", BuildSpec(batch_sizes=(1,), compute_capabilities=wanted), rtx)
        header = read_header(built.directory / "model.plan")
        assert header is not None
        assert (header.flavour, header.version) == ("tensorrt_rtx", rtx.version)
        assert header.capabilities == found
        assert header.nbytes == built.sizes[0]


def test_a_spec_of_another_machine_is_fitted_to_what_this_one_can_build(rtx: Flavour) -> None:
    spec = BuildSpec(
        max_batch=8, compute_capabilities=("8.9",), tf32=False, version_compatible=True, hardware_compatible=True
    )
    kept = BuildSpec(max_batch=8, tf32=False)
    assert spec.fitted_to(rtx, "12.0") == kept
    tensorrt = dataclasses.replace(rtx, name="tensorrt")
    both = dataclasses.replace(kept, version_compatible=True, hardware_compatible=True)
    assert spec.fitted_to(tensorrt, "8.6") == spec.fitted_to(tensorrt, "") == both
    assert spec.fitted_to(tensorrt, "7.5") == dataclasses.replace(kept, version_compatible=True)


def test_shapes_and_specs_are_checked_when_they_are_made() -> None:
    assert parse_shape("in:0:1x2:3x4:5x6") == ("in:0", Range((1, 2), (3, 4), (5, 6)))
    for text in ("x", "x:", "x:1:2:1", "x:1:1x1:2", "x:a", "x:1x"):
        with pytest.raises(ConfigError, match="shape "):
            parse_shape(text)
    wrong: list[dict[str, Any]] = [
        {"precision": "int8"}, {"batch_sizes": (0,)}, {"batch_sizes": (2, 2)}, {"max_batch": -1},
        {"batch_sizes": (1,), "max_batch": 2}, {"compute_capabilities": ("89",)},
    ]  # fmt: skip
    for values in wrong:
        with pytest.raises(ConfigError):
            BuildSpec(**values)
    assert [BuildSpec(tf32=tf32).arguments() for tf32 in (None, True, False)] == [[], ["--tf32"], ["--no-tf32"]]


def test_inputs_of_different_lengths_are_not_batched_together(tmp_path: Path) -> None:
    model = read_graph(onnx_models.whole(tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match=r"the inputs are 'a' \[n\], 'b' \[m\]"):
        plan_jobs(inputs_of(model), outputs_of(model), BuildSpec(batch_sizes=(1, 2)))
    static = read_graph(onnx_models.classifier(tmp_path / "s.onnx", batch=1))
    assert plan_jobs(inputs_of(static), outputs_of(static), BuildSpec()) == [PlanJob("model.plan", None, ())]
