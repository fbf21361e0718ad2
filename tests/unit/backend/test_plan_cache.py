"""Plans built on demand: once for all processes, whole or not at all, told apart by all that makes them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from pinstream import sidecar
from pinstream.engines.flavour import Flavour
from pinstream.errors import ModelFileError
from pinstream.plans import BuildSpec, build_plan, cached_plan
from pinstream.plans.timing import TimingCache
from pinstream.preflight import Gpu, this_gpu
from tests import onnx_models
from tests.rtx import installed_rtx

FLOAT = TensorProto.FLOAT
ADA, H200 = Gpu("NVIDIA RTX 4090", "8.9"), Gpu("NVIDIA H200", "9.0")


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return onnx_models.classifier(tmp_path / "classifier.onnx")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


CACHED = """
import sys
from pathlib import Path
from pinstream.engines.flavour import load_flavour
from pinstream.plans import BuildSpec, cached_plan
from pinstream.preflight import Gpu
built = []
sys.stdin.readline()
entry = cached_plan(
    Path(sys.argv[1]), BuildSpec(batch_sizes=(1, 2)), load_flavour("tensorrt_rtx"), Gpu("NVIDIA RTX 4090", "8.9"),
    Path(sys.argv[2]), progress=lambda file, fraction: built.append(file),
)
print(entry, bool(built))
"""


def processes_started(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Lets all go at the same time, once they have imported everything."""
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_of_processes_that_ask_at_once_one_builds(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CACHED, str(classifier), str(tmp_path / "cache")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in processes_started(processes)]
    assert all(process.returncode == 0 for process in processes)
    entries, built = zip(*(output.split() for output in outputs), strict=True)
    assert len(set(entries)) == 1
    assert sorted(built) == ["False", "False", "True"]
    assert names(Path(entries[0])) == ["model.b1.plan", "model.b2.plan", "model.json", "model.onnx"]


def test_the_cache_tells_models_options_and_gpus_apart(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    cache, one = tmp_path / "cache", BuildSpec(batch_sizes=(1,))
    first = cached_plan(classifier, one, rtx, ADA, cache)
    stamp = (first / "model.plan").stat().st_mtime_ns
    assert cached_plan(classifier, one, rtx, ADA, cache) == first
    assert (first / "model.plan").stat().st_mtime_ns == stamp
    other = onnx_models.classifier(tmp_path / "other.onnx", seed=1)
    entries = {
        first,
        cached_plan(classifier, one, rtx, H200, cache),
        cached_plan(classifier, BuildSpec(max_batch=2), rtx, ADA, cache),
        cached_plan(other, one, rtx, ADA, cache),
    }
    assert len(entries) == 4
    assert all(entry.parent == cache / "plans" for entry in entries)


def test_damaged_and_abandoned_entries_are_built_again(rtx: Flavour, classifier: Path, tmp_path: Path) -> None:
    cache, spec = tmp_path / "cache", BuildSpec(batch_sizes=(1,))
    entry = cached_plan(classifier, spec, rtx, ADA, cache)
    whole = (entry / "model.plan").stat().st_size
    (entry / "model.plan").write_bytes(b"vtrt")
    abandoned = entry.parent / f".{entry.name}-dead"
    abandoned.mkdir()
    assert cached_plan(classifier, spec, rtx, ADA, cache) == entry
    assert (entry / "model.plan").stat().st_size == whole
    assert not abandoned.exists()
    content = bytearray((entry / "model.plan").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "model.plan").write_bytes(content)
    cached_plan(classifier, spec, rtx, ADA, cache)
    assert (entry / "model.plan").read_bytes() != content, "a bit that flipped"
    (entry / "model.json").write_text("{}")
    cached_plan(classifier, spec, rtx, ADA, cache)
    assert sidecar.read(entry / "model.json").kind == "plan"


def test_a_failed_build_leaves_no_entry_and_an_unusable_cache_is_named(rtx: Flavour, tmp_path: Path) -> None:
    model = onnx_models.unchecked(
        tmp_path / "m.onnx", [helper.make_node("FooBar", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])]
    )
    with pytest.raises(ModelFileError, match="FooBar"):
        cached_plan(model, BuildSpec(), rtx, ADA, tmp_path / "cache")
    assert [name for name in names(tmp_path / "cache" / "plans") if not name.endswith(".lock")] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match=r"plan cache .*file cannot be used: .*name another directory"):
        cached_plan(onnx_models.classifier(model), BuildSpec(), rtx, ADA, tmp_path / "file")


@pytest.mark.filterwarnings("ignore:.*[Tt]iming cache:DeprecationWarning")
def test_the_timing_cache_is_kept_for_tensorrt_and_not_for_rtx(rtx: Flavour, tmp_path: Path) -> None:
    """TensorRT-RTX has the calls, though nothing to put in: enough to see them made, and the file kept."""
    config = rtx.module.Builder(rtx.logger).create_builder_config()
    with TimingCache(rtx, "GPU", tmp_path / "rtx").lent_to(config):
        pass
    assert not (tmp_path / "rtx").exists()
    as_tensorrt = dataclasses.replace(rtx, name="tensorrt")
    for _ in range(2):
        with TimingCache(as_tensorrt, "NVIDIA H200/x", tmp_path).lent_to(config):
            assert config.get_timing_cache() is not None
    (kept,) = tmp_path.glob("*.timing")
    assert kept.name == f"tensorrt-{rtx.version}-NVIDIA_H200_x.timing"


@pytest.mark.parametrize("broken", ["its directory is a file", "the file cannot be read"])
def test_a_timing_cache_that_cannot_be_used_costs_no_plan(
    rtx: Flavour, classifier: Path, tmp_path: Path, broken: str
) -> None:
    as_tensorrt = dataclasses.replace(rtx, name="tensorrt")
    cache = tmp_path / "cache"
    if broken == "its directory is a file":
        cache.write_text("")
    else:
        cache.mkdir()
        gpu = this_gpu()
        name = "".join(c if c.isalnum() else "_" for c in gpu.name) if gpu else "none"
        # A regular file of which the first byte cannot be read, not even by root.
        (cache / f"tensorrt-{rtx.version}-{name}.timing").symlink_to("/proc/self/mem")
    built = build_plan(classifier, tmp_path / "out", BuildSpec(batch_sizes=(1,)), as_tensorrt, cache_dir=cache)
    assert names(tmp_path / "out") == ["model.json", "model.onnx", "model.plan"]
    (warning,) = built.warnings
    assert warning.startswith(f"TensorRT's timing cache {cache}/tensorrt-{rtx.version}-")
    assert "make its directory writable" in warning
