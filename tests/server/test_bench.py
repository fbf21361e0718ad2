"""`pinstream bench` as a whole: a real tritonserver, the real perf_analyzer, small models, short windows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.suites import sweep
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main
from pinstream_cli.triton.leftovers import prefix_of
from tests import onnx_models
from tests.server.running import running
from tests.yolox_exports import Export

QUICK = ("--repetitions", "1", "--window", "0.3", "--foreign", "1")


@pytest.fixture(scope="module", autouse=True)
def _perf_analyzer() -> None:
    try:
        find_perf_analyzer(print)
    except CommandError as error:
        pytest.skip(str(error))


def bench(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    """Runs a suite and reads its result file."""
    file = tmp_path / "result.json"
    result = CliRunner().invoke(main, ["bench", *map(str, arguments), *QUICK, "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "ratio" in result.output
    content: dict[str, Any] = json.loads(file.read_text())
    assert all(row["images_per_s"] > 0 and row["ratio_to_bare"] > 0 for row in content["rows"])
    return content


def shared_memory() -> set[str]:
    """Regions of the Tritons of this process; others may be at work on this machine."""
    return {path.name for path in Path("/dev/shm").glob(f"{prefix_of(os.getpid())}*")}


def test_serve(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    before = shared_memory()
    raw = tmp_path / "raw"
    transports = [word for name in ("grpc", "grpc+shm", "http+shm") for word in ("--transport", name)]
    load = ["--batch", "1,4", "--concurrency", "2", "--keep-raw", str(raw)]
    content = bench(tmp_path, "serve", "--model", model, *transports, *load)
    assert content["suite"] == "serve"
    assert content["versions"]["tritonserver"]
    rows = {(row["name"], row["batch"]): row for row in content["rows"]}
    assert rows.keys() == {
        (name, batch)
        for name in ("bare ONNX Runtime loop", "gRPC", "gRPC, shared memory", "HTTP, shared memory")
        for batch in (1, 4)
    }
    assert max(row["ratio_to_bare"] for (name, _), row in rows.items() if name.startswith("gRPC")) < 1
    # A model of microseconds: what serving costs is nearly all of the CPU time, and the model's stub is part of it.
    assert {"tritonserver", "classifier", "perf_analyzer"} <= rows["gRPC", 1]["cpu_ms_per_image"].keys()
    assert len(list(raw.glob("*.csv"))) >= 6
    assert shared_memory() <= before


def test_serve_with_a_server_that_runs_already(tmp_path: Path) -> None:
    model = onnx_models.two_by_two(tmp_path / "sums.onnx")
    with running(model) as server:
        urls = ["-u", server.grpc_url, "--http-url", server.http_url]
        load = ["--transport", "http+shm", "--batch", "2,64", "--concurrency", "1"]
        content = bench(tmp_path, "serve", "--model", model, *urls, *load)
    assert (content["rows"][-1]["name"], content["rows"][-1]["batch"]) == ("HTTP, shared memory", 2)
    assert content["rows"][-1]["cpu_ms_per_image"] == {}
    # One that the server refuses does not keep the others from being measured.
    (refused,) = (note for note in content["notes"] if "is left out" in note)
    assert refused.startswith("HTTP, shared memory, batch 64, concurrency 1, is left out: perf_analyzer failed")


def test_the_detector_of_a_service_is_measured_in_shared_memory(tmp_path: Path) -> None:
    model = Export().save(tmp_path / "tiny.onnx")
    content = bench(tmp_path, "serve", "--model", model, "--transport", "grpc+shm", "--concurrency", "1")
    assert "gRPC, shared memory" in [row["name"] for row in content["rows"]]
    assert not any("is left out" in note for note in content["notes"])


def test_engine(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    content = bench(tmp_path, "engine", "--model", model, "--batch", "1,8")
    names = [(row["name"], row["batch"]) for row in content["rows"]]
    lone = [("ONNX Runtime, one at a time", 1), ("engine, one at a time", 1)]
    assert sorted(names) == sorted([(n, b) for n in ("bare ONNX Runtime loop", "engine loop") for b in (1, 8)] + lone)


def test_ensemble(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    image = tmp_path / "noise.jpg"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    model = Export().save(tmp_path / "tiny.onnx")
    content = bench(tmp_path, "ensemble", "--model", model, "--image", image, "--concurrency", "2")
    names = [row["name"] for row in content["rows"]]
    steps = ["preprocess alone", "detector alone", "postprocess alone"]
    assert names == ["sum of the bare steps", *steps, "gRPC"]
    rates = {row["name"]: row["images_per_s"] for row in content["rows"]}
    # Medians of several windows each: the median of the sums is near the sum of the medians, not equal to it.
    assert rates["sum of the bare steps"] == pytest.approx(1 / sum(1 / rates[step] for step in steps), rel=0.3)
    models = ("yolox_preprocess", "yolox_detector", "yolox_postprocess")
    stages = content["rows"][-1]["stages_ms"]
    assert all(stages[step] > 0 and f"{step}, waiting" in stages for step in models)
    processes = content["rows"][-1]["cpu_ms_per_image"]
    assert {"yolox_preprocess", "yolox_detector", "yolox_postprocess", "tritonserver"} <= processes.keys()


def test_compare_beside_peers(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    broken = tmp_path / "broken"
    shutil.copytree("benchmarks/peers/onnxruntime", broken)
    (broken / "1" / "model.py").write_text("raise RuntimeError('not here')\n")
    peers = ["--peer", "empty", "--peer", "onnxruntime", "--peer", str(broken)]
    load = ["--batch", "1,4", "--concurrency", "1,2", "--plot", str(tmp_path / "plots")]
    content = bench(tmp_path, "compare", "--model", model, *peers, *load)
    rows = {(row["name"], row["batch"], bool(row["requests_per_s"])): row for row in content["rows"]}
    expected = {("pinstream", 1, False), ("pinstream", 4, False), ("empty", 1, False), ("onnxruntime", 1, False)}
    # What is sent at random times is sent to those that work; a peer that does not load is told and left out.
    expected |= {("ONNX Runtime, one at a time", 1, False)}
    assert rows.keys() >= expected | {("pinstream", 1, True), ("onnxruntime", 1, True)}
    assert not any(name in ("broken",) or (name, paced) == ("empty", True) for name, _, paced in rows)
    assert any(note.startswith("broken did not load") and "not here" in note for note in content["notes"])
    # As long as they were, which is more than was asked for.
    (lengths,) = (note for note in content["notes"] if note.startswith("Windows of requests at random times"))
    paced = [row["window_s"] for (_, _, at_random), row in rows.items() if at_random]
    assert min(paced) == pytest.approx(2.4)
    assert f"{max(paced):g} s." in lengths
    assert rows["pinstream", 1, False]["stages_ms"].keys() >= {"queue", "compute_infer", "gather", "compute", "scatter"}
    assert (tmp_path / "plots" / "compare-latency-throughput-light.svg").is_file()


def test_sweep_says_whether_throughput_falls(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    (tmp_path / "broken.onnx").write_text("no model")
    other = onnx_models.classifier(tmp_path / "other.onnx")
    also = ["--also", str(tmp_path / "broken.onnx"), "--also", str(other)]
    content = bench(tmp_path, "sweep", "--model", model, *also, "--batch", "1,4,64", "--concurrency", "1,4")
    axes = {axis["title"]: axis for axis in content["axes"]}
    assert axes["Concurrency"]["values"] == [1, 4]
    assert axes["Images a request"]["values"] == [1, 4]
    assert [content["rows"][i]["concurrency"] for i in axes["Concurrency"]["rows"]] == [1, 4]
    for words in ("From concurrency 1 to 4 throughput", "From 1 to 4 images a request throughput"):
        assert any(note.startswith(words) for note in content["notes"])
    # What cannot be measured does not cost what was.
    assert any(note.startswith("broken.onnx is left out: ") for note in content["notes"])
    assert not any(str(tmp_path) in note for note in content["notes"]), "where files lie is nobody's business"
    assert "Requests of 64 are left out: classifier takes 8 items at most." in content["notes"]
    assert any(note.startswith("other: From concurrency 1 to 4 throughput") for note in content["notes"])
    assert content["growth"].keys() == {"concurrency", "images_a_request", "concurrency_of_other_sizes"}
    # By name: one that is left out would shift those behind it.
    assert content["growth"]["concurrency_of_other_sizes"].keys() == {"other"}


@pytest.mark.parametrize("moment", ["the server before ends", "the model is measured"])
def test_a_sweep_that_is_stopped_keeps_the_models_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    file, load = tmp_path / "result.json", ["--batch", "1", "--concurrency", "1"]
    model, other = (str(onnx_models.classifier(tmp_path / f"{name}.onnx")) for name in ("classifier", "other"))
    measure = sweep._measure

    def stop() -> None:
        raise KeyboardInterrupt

    def stopped(setup: Setup, *arguments: Any, whole: bool, stretch: float) -> Any:
        if not whole:
            stop()
        if moment == "the server before ends":
            setup.closing.callback(stop)
        return measure(setup, *arguments, whole=whole, stretch=stretch)

    monkeypatch.setattr(sweep, "_measure", stopped)
    also = ["--also", other, "--also", other]
    done = CliRunner().invoke(main, ["bench", "sweep", "--model", model, *also, *load, *QUICK, "--json", str(file)])
    assert done.exit_code == 130, done.output
    content = json.loads(file.read_text())
    assert [row["batch"] for row in content["rows"][1:]] == [1, 1]
    assert content["notes"][-2:] == [
        "It was interrupted before other.onnx was measured. It is left out.",
        "It was interrupted before other.onnx. It is left out.",
    ]


def test_timeline_shows_every_instance(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    onnx_models.classifier(repository / "classifier" / "1" / "model.onnx")
    config = 'backend: "pinstream"\ndynamic_batching { }\ninstance_group [ { count: 2 kind: KIND_CPU } ]\n'
    (repository / "classifier" / "config.pbtxt").write_text(config)
    serving = ["--model-repository", str(repository), "--name", "classifier"]
    load = ["--rate", "100", "--seconds", "0.5", "--settle", "0.5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["bench", "timeline", *serving, *load])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "timeline-dark.png").is_file()
    recorded = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert recorded["otherData"].keys() >= {"command", "date", "commit", "machine", "versions"}
    # Requests under way all the time would be some thousands.
    assert 50 < recorded["otherData"]["images_per_s"] < 200
    events = recorded["traceEvents"]
    # All of the half second, in microseconds, and not just what is drawn large.
    assert min(event["ts"] for event in events) < 50_000
    assert max(event["ts"] + event["dur"] for event in events) > 450_000
    assert {event["args"]["process"] for event in events} == {"classifier_0_0", "classifier_0_1"}
    assert {"execute", "gather", "compute", "scatter"} <= {event["name"] for event in events}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serve", "--model", "no/such.onnx"], "does not exist"),
        (["serve", "--model-repository", "models"], "needs --name"),
        (["ensemble", "--model", "no/such.onnx"], "--image"),
        (["compare", "--model", "models/shapes_nano.onnx", "--peer", "nobody"], "benchmarks/peers (classic, empty"),
    ],
)
def test_errors_take_one_line(arguments: list[str], error: str) -> None:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert error in result.output
    assert "Traceback" not in result.output


def test_a_batch_that_the_server_would_refuse_is_an_error_before_it_starts(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    arguments = ["serve", "--model", str(model), "--batch", "64", "--concurrency", "1", "--transport", "grpc", *QUICK]
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert "--batch 64: classifier takes 8 items a request at most" in result.output
    assert "Starting" not in result.output


def test_more_requests_than_serve_lets_wait_are_measured(tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    content = bench(tmp_path, "serve", "--model", model, "--transport", "grpc", "--batch", "1", "--concurrency", "128")
    assert content["rows"][-1]["concurrency"] == 128
    assert any("no limits" in note for note in content["notes"])


def test_latencies_are_of_a_load_that_has_built_up(tmp_path: Path) -> None:
    # So slow that the answers to the first requests alone take longer than a window that was asked for.
    model = onnx_models.heavy(tmp_path / "heavy.onnx", 256, 8)
    content = bench(tmp_path, "serve", "--model", model, "--transport", "grpc", "--batch", "1", "--concurrency", "64")
    row = content["rows"][-1]
    assert row["p50_ms"] == pytest.approx(64 / row["images_per_s"] * 1e3, rel=0.35)
