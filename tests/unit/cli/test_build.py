"""`pinstream build` from file to file, as a function and as a command."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from pinstream import sidecar
from pinstream_cli import yolox_graph, yolox_verify
from pinstream_cli.build import build
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.yolox_graph import is_serving_graph
from pinstream_cli.yolox_reference import load_letterboxed
from pinstream_cli.yolox_service import build_service
from pinstream_client.labels import COCO
from tests import onnx_models
from tests.shared_files import shared_image, shared_model
from tests.yolox_exports import Export, save_classifier


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return Export().save(tmp_path / "yolox_tiny.onnx")


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(build, [str(argument) for argument in arguments])


def test_functions_that_call_themselves_are_refused(tmp_path: Path) -> None:
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    itself = onnx.helper.make_node("Again", ["a"], ["b"], domain="own")
    again = onnx.helper.make_function("own", "Again", ["a"], ["b"], [itself], opsets)
    image, out = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 416, 416]), ("output", [1, 3549, 85]))
    )
    call = onnx.helper.make_node("Again", ["images"], ["output"], domain="own")
    graph = onnx.helper.make_graph([call], "graph", [image], [out])
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[again], ir_version=8)
    (tmp_path / "again.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="has functions that call themselves"):
        build_service(tmp_path / "again.onnx", tmp_path / "out")


def test_functions_that_make_millions_of_nodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has functions that make more than 20,000 nodes"):
        build_service(onnx_models.doubling(tmp_path / "model.onnx", 40), tmp_path / "out")


def test_both_files_are_written_and_say_the_same(export: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    report = build_service(export, tmp_path / "new" / "out", candidates=20, progress=steps.append)
    out = tmp_path / "new" / "out"
    assert sorted(entry.name for entry in out.iterdir()) == ["model.json", "model.onnx"]
    assert (report.model, report.sidecar) == (out / "model.onnx", out / "model.json")
    assert is_serving_graph(report.model)
    written = sidecar.read(report.sidecar)
    assert sidecar.check_model_file(out, written) == report.model
    assert written.inputs == (sidecar.TensorEntry("images", "UINT8", (-1, 64, 64, 3)),)
    assert written.outputs == (sidecar.TensorEntry("candidates", "FP32", (-1, 20, 6)),)
    assert written.labels == ("class_0", "class_1", "class_2")
    assert written.sections["yolox"] == {"input_size": [64, 64], "num_classes": 3, "candidates": 20}
    digest = hashlib.sha256(export.read_bytes()).hexdigest()
    assert written.sections["source"] == {"file": "yolox_tiny.onnx", "sha256": digest}
    assert written.sections["built_with"]["onnx"] == metadata.version("onnx")
    checks = written.sections["checks"]
    assert [set(check) for check in checks] == [
        {"name", "batch", "max_box_error_px", "max_score_error", "precision"}
    ] * 4
    assert [check["batch"] for check in checks] == [1, 1, 1, 3]
    assert report.max_box_error_px == max(check["max_box_error_px"] for check in checks) < 0.01
    assert steps[0] == "reading yolox_tiny.onnx"
    assert len(steps) == 4


def test_the_command_shows_what_it_built(export: Path, tmp_path: Path) -> None:
    result = command(export, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "batch 1, undecoded" in result.stdout
    assert "[batch, 64, 64, 3]" in result.stdout
    assert "[batch, 84, 6]" in result.stdout, "K is at most the number of anchors"
    assert "class_0, class_1, class_2" in result.stdout
    assert "4 times against the export, batch 1 and 3" in " ".join(result.stdout.split())
    assert "hint: class names are class_0 to class_2; give the real ones with --labels FILE" in result.stdout
    assert result.stderr == ""


def test_80_classes_are_coco_s_unless_a_file_says_otherwise(tmp_path: Path) -> None:
    export = Export(size=(32, 32), classes=80).save(tmp_path / "yolox.onnx")
    report = build_service(export, tmp_path / "out")
    assert (report.labels, report.hint) == (COCO, "")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"sort {index}" for index in range(80)))
    assert build_service(export, tmp_path / "out", labels=labels).labels[79] == "sort 79"


def test_coco_has_80_names_in_the_order_of_the_weights() -> None:
    assert len(COCO) == len(set(COCO)) == 80
    assert [COCO[index] for index in (0, 1, 2, 7, 16, 79)] == [
        *("person", "bicycle", "car", "truck", "dog", "toothbrush"),
    ]


def test_labels_travel_in_the_model_and_in_the_sidecar(export: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffFuchs\r\nBär \r\nEule, weiß\r\n\r\n".encode())
    report = build_service(export, tmp_path / "out", labels=labels)
    assert report.labels == sidecar.read(report.sidecar).labels == ("Fuchs", "Bär", "Eule, weiß")
    entries = {entry.key: entry.value for entry in onnx.load(str(report.model)).metadata_props}
    assert json.loads(entries["pinstream.labels"]) == ["Fuchs", "Bär", "Eule, weiß"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n", "2 labels, but the model has 3 classes"),
        (b"one\ntwo\nthree\nfour\n", "4 labels, but the model has 3 classes"),
        (b"", "0 labels, but the model has 3 classes"),
        (b"one\n\nthree\n", "line 2 is empty"),
        (b"\xff\xd8\xff\xe0", "must be UTF-8 text"),
        (None, "the labels cannot be read"),
    ],
)
def test_bad_labels(content: bytes | None, message: str, export: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(BuildError, match=message):
        build_service(export, tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("candidates", [0, -1, 3841])
def test_candidates_beyond_what_tensorrt_takes(candidates: int, export: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"--candidates must be 1 to 3840 .*found {candidates}"):
        build_service(export, tmp_path / "out", candidates=candidates)


def test_bad_input_is_one_line_and_exit_code_2(export: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "text.jpg").write_text("hello")
    classifier = save_classifier(tmp_path / "classifier.onnx")
    out = ["-o", tmp_path / "out"]
    cases = [
        ([tmp_path / "absent.onnx", *out], "no such file"),
        ([tmp_path / "empty.onnx", *out], "empty (0 bytes)"),
        ([tmp_path / "text.onnx", *out], "not an ONNX model"),
        ([tmp_path, *out], "is a directory"),
        ([classifier, *out], "not a YOLOX export"),
        ([classifier, *out], "for any other model add --plan"),
        ([export, "-o", tmp_path / "text.jpg"], "is a file; choose a directory with -o"),
        ([export, "-o", tmp_path / "text.jpg" / "below"], "is a file; choose a directory with -o"),
        ([export, *out, "--candidates", 0], "--candidates must be 1 to 3840"),
        ([export, *out, "--image", tmp_path / "absent.jpg"], "no such image file"),
        ([export, *out, "--image", tmp_path / "text.jpg"], "not an image that OpenCV can read"),
    ]
    for arguments, message in cases:
        result = command(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("error: "), arguments
        assert message in result.stderr, arguments
        assert result.stderr.count("\n") == 1, arguments
        assert result.stdout == "", arguments
    assert not (tmp_path / "out").exists()


def test_the_export_itself_is_never_overwritten(tmp_path: Path) -> None:
    export = Export().save(tmp_path / "model.onnx")
    before = export.read_bytes()
    with pytest.raises(BuildError, match="would overwrite the export itself"):
        build_service(export, tmp_path)
    assert export.read_bytes() == before


def test_a_built_graph_is_not_built_again(export: Path, tmp_path: Path) -> None:
    built = build_service(export, tmp_path / "out").model
    with pytest.raises(NotYoloxError, match="already a serving graph"):
        build_service(built, tmp_path / "again")


def test_a_failed_proof_leaves_an_earlier_build_as_it_is(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    build_service(export, out)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}
    fuse = yolox_graph.fuse

    def fuse_wrongly(*arguments: Any) -> Any:
        model = fuse(*arguments)
        next(n for n in model.graph.node if n.op_type == "Exp" and n.name.startswith("pinstream/")).op_type = "Abs"
        return model

    monkeypatch.setattr(yolox_graph, "fuse", fuse_wrongly)
    for directory in (out, tmp_path / "fresh"):
        with pytest.raises(BuildError, match=r"boxes differ by .*nothing was written"):
            build_service(export, directory, candidates=10)
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
    assert not (tmp_path / "fresh").exists()


def test_a_full_disk_leaves_an_earlier_build_as_it_is(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    build_service(export, out)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def write_nothing(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pinstream_cli.yolox_service.write", write_nothing)
    with pytest.raises(BuildError, match=r"cannot be written \(No space left on device\)"):
        build_service(export, out, candidates=10)
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before


def test_a_proof_outside_the_tolerance_says_what_is_allowed(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolox_verify, "BOX_TOLERANCE_PX", -1.0)
    monkeypatch.setattr(yolox_verify, "BOX_TOLERANCE_RELATIVE", 0.0)
    with pytest.raises(BuildError, match=r"boxes differ by .* px, allowed are -1"):
        build_service(export, tmp_path / "out")


def test_a_real_model_finds_the_dog(tmp_path: Path) -> None:
    picture = shared_image()
    report = build_service(shared_model(), tmp_path / "out", images=[picture])
    assert report.input_size == (416, 416)
    assert report.labels == COCO
    assert [check.name for check in report.checks][-2:] == [picture.name, f"random + scene + {picture.name}"]
    session = onnxruntime.InferenceSession(str(report.model), providers=["CPUExecutionProvider"])
    (candidates,) = session.run(None, {"images": load_letterboxed(picture, (416, 416))[None]})
    height, width = cv2.imread(str(picture)).shape[:2]
    ratio = min(416 / height, 416 / width)
    found: dict[str, Any] = {}
    for row in candidates[0]:
        found.setdefault(COCO[int(row[5])], row)
    for name, box in {"dog": (133, 207, 326, 543), "bicycle": (52, 137, 572, 424)}.items():
        np.testing.assert_allclose(found[name][:4] / ratio, box, atol=20)
        assert found[name][4] > 0.7
    assert max(found[name][4] for name in ("car", "truck") if name in found) > 0.5
