"""Plans for the GPU at hand, built once a run, and the outcome of the run as a file."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pinstream.engines import Engine, find_model_file, open_engine
from pinstream.errors import ModelFileError
from pinstream.options import Options
from tests import onnx_models
from tests.gpu.serving import INPUTS_ON_THE_GPU, parameters, place
from tests.server.conftest import ONE_LINE
from tests.server.running import Running, running

# What TensorRT for RTX can be told only once a process: whether FP32 is multiplied in TF32.
OF_ITS_OWN = "exact"

BuildPlan = Callable[..., Path]
OpenPlan = Callable[..., Engine]
ROOT = Path(__file__).resolve().parents[2]

# Triton puts an instance on every GPU it sees. Tests are about one; test_two_gpus.py lets its server see them all.
VISIBLE = "CUDA_VISIBLE_DEVICES"
os.environ.setdefault(VISIBLE, "0")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a process of its own, unless it has this one to itself."""
    exact = [item for item in items if OF_ITS_OWN in item.name]
    if len(exact) < len(items):
        for item in exact:
            file = item.nodeid.split("::")[0]
            item.add_marker(pytest.mark.skip(reason=f"needs a process of its own: pytest {file} -k {OF_ITS_OWN}"))


def lacking(reason: str) -> NoReturn:
    """Skip the calling test, or fail it where everything has to be there."""
    (pytest.fail if os.environ.get("PINSTREAM_REQUIRE_GPU") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def flavour() -> Any:
    """The TensorRT of this machine."""
    from pinstream.engines.flavour import load_flavour

    try:
        from pinstream import cuda
    except ImportError as error:
        lacking(f"needs cuda-python: {error}")
    if not cuda.device_count():
        lacking("needs a GPU")
    try:
        return load_flavour()
    except ModelFileError as error:
        lacking(str(error))


@pytest.fixture(scope="session")
def build(flavour: Any, tmp_path_factory: pytest.TempPathFactory) -> BuildPlan:
    """Builds plans of an ONNX file; gives their directory, and the same one for the same wish."""
    from pinstream.plans import BuildSpec, build_plan

    built: dict[Any, Path] = {}

    def run(onnx: Path, **wishes: Any) -> Path:
        key = (onnx, BuildSpec(**wishes))
        if key not in built:
            built[key] = tmp_path_factory.mktemp("plan")
            build_plan(onnx, built[key], BuildSpec(**wishes), flavour)
        return built[key]

    return run


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run keeps JIT caches."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load(build: BuildPlan, cache_dir: Path, request: pytest.FixtureRequest) -> OpenPlan:
    """Opens a plan directory as an engine that is closed after the test."""

    def run(directory: Path, **options: Any) -> Engine:
        settings = Options(cache_dir=str(cache_dir), **options)
        engine = open_engine(find_model_file(directory, settings), settings)
        request.addfinalizer(engine.close)
        return engine

    return run


@pytest.fixture(scope="session")
def server(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A classifier as plans, with several configurations."""
    onnx = onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx")
    repository = tmp_path_factory.mktemp("repository")
    static = build(onnx, batch_sizes=(1, 4, 8))
    place(static, repository, "static")
    place(static, repository, "on_gpu", ONE_LINE + INPUTS_ON_THE_GPU)
    place(static, repository, "two_instances", ONE_LINE + "instance_group { count: 2 kind: KIND_GPU }\n")
    place(
        static, repository, "executions", ONE_LINE + "instance_group { kind: KIND_GPU }\n" + parameters(EXECUTIONS="3")
    )
    place(build(onnx, max_batch=16), repository, "dynamic")
    with running(repositories=[repository], extra=["--cuda-memory-pool-byte-size=0:67108864"]) as started:
        yield started


_outcomes: list[dict[str, Any]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect every test's outcome."""
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        outcome = {"name": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        _outcomes.append({**outcome, **_worst(report.user_properties)})
        _write_outcomes()


def _worst(measured: Iterable[tuple[str, object]]) -> dict[str, float]:
    """The worst of what a test measured: the largest loss, the least overlap."""
    worst: dict[str, float] = {}
    for name, value in measured:
        pick = min if name in ("overlap", "ap") else max
        worst[name] = pick(worst.get(name, float(str(value))), float(str(value)))
    return worst


def _write_outcomes() -> None:
    """Write what is known so far where PINSTREAM_GPU_RESULTS says; after every test, so that a kill loses one."""
    target = os.environ.get("PINSTREAM_GPU_RESULTS")
    # The processes of pytest-xdist report to the one that started them.
    if not target or not _outcomes or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    from pinstream import cuda
    from pinstream.engines.flavour import load_flavour

    commit = os.environ.get("PINSTREAM_COMMIT") or _commit()
    tests = [*_earlier_outcomes(Path(target), commit), *_outcomes]
    count = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failed", "skipped")}
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {"gpu": cuda.device_name(0), "compute_capability": cuda.compute_capability(0)},
        "tensorrt": str(load_flavour()),
        **count,
        "tests": tests,
    }
    Path(target).write_text(json.dumps(result, indent=1) + "\n")


def _earlier_outcomes(target: Path, commit: str) -> list[dict[str, Any]]:
    """What other parts of a run of the same commit have found, where it goes in parts."""
    written = json.loads(target.read_text()) if target.is_file() else {}
    names = {outcome["name"] for outcome in _outcomes}
    return [test for test in written.get("tests", ()) if written["commit"] == commit and test["name"] not in names]


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
