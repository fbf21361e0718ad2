"""Machine, commit and versions; CPU time by process."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import metadata

import pytest

from pinstream.engines.flavour import load_flavour
from pinstream.errors import ModelFileError
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.cpu import CpuTimes, cpu_times


def test_machine() -> None:
    machine = environment.machine()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert isinstance(machine["gpus"], list)
    assert machine["cpu"]


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/me/models/yolox.onnx", "yolox.onnx"),
        ("../../models/yolox.onnx", "yolox.onnx"),
        ("/home/me/service/", "service/"),
        ("--json=/tmp/out.json", "--json=out.json"),
        ("/a/one.jpg,../b/two.jpg", "one.jpg,two.jpg"),
        ("models/yolox.onnx", "models/yolox.onnx"),
        ("1,8", "1,8"),
        ("https://host:8000/v2", "https://host:8000/v2"),
        ("two words", "'two words'"),
    ],
)
def test_a_kept_command_does_not_tell_where_files_lie(word: str, kept: str) -> None:
    assert environment.command(["pinstream", "bench", word]) == f"pinstream bench {kept}"


def test_versions() -> None:
    versions = environment.versions(tritonserver="2.51.0")
    assert versions["tritonserver"] == "2.51.0"
    assert versions["numpy"]


def test_our_own_version_is_known_where_nothing_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = environment.versions()["pinstream"]

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert environment.versions()["pinstream"] == installed
    assert installed[0].isdecimal()


def test_tensorrt_is_among_the_versions_by_its_package_or_else_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        flavour = load_flavour()
    except ModelFileError:
        pytest.skip("needs TensorRT")
    by_package = {name: version for name, version in environment.versions().items() if name.startswith("tensorrt")}
    assert flavour.version in by_package.values()
    monkeypatch.setattr(environment, "TENSORRT_PACKAGES", ())
    assert environment.versions()[flavour.name] == flavour.version


def test_a_machine_without_tensorrt_has_no_version_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TENSORRT_PACKAGES", ())
    monkeypatch.setattr("pinstream.engines.flavour.MODULES", {"tensorrt": ("no_such_module",)})
    assert not [name for name in environment.versions() if name.startswith("tensorrt")]


def test_commit() -> None:
    commit = environment.commit()
    assert commit == "unknown" or len(commit.removesuffix("-dirty")) == 40


def test_cpu_time_of_this_process_and_of_a_child() -> None:
    before = cpu_times()
    burn = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.4: pass"
    child = subprocess.Popen([sys.executable, "-c", burn + "\ninput()"], stdin=subprocess.PIPE, text=True)
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    time.sleep(0.5)
    running = cpu_times().since(before)
    assert running.by_process["bench"] == pytest.approx(0.3, abs=0.15)
    assert running.by_process["bench workers"] > 0.1
    child.communicate("\n")
    ended = cpu_times().since(before)
    assert ended.by_process["perf_analyzer"] >= 0.3


def test_foreign_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream_cli.benchmark.cpu.os.cpu_count", lambda: 2)
    assert CpuTimes(2.0, 3.0, {"a": 1.0, "b": 1.0}).foreign == pytest.approx(0.25)
    assert CpuTimes(2.0, 1.0, {"a": 1.1}).foreign == 0.0
