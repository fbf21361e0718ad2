"""A machine that runs full: /dev/shm while models are served, the disk while plans are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests import onnx_models
from tests.rtx import installed_rtx

ROOT = Path(__file__).resolve().parents[2]


def lacking(what: str) -> NoReturn:
    """Leave the test out, or fail it where it is not to be left out."""
    (pytest.fail if os.environ.get("PINSTREAM_REQUIRE_MOUNTS") else pytest.skip)(what)


def in_a_namespace(script: str) -> str:
    """Run a shell script as root with mounts of its own; gives what it printed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        lacking("needs root and unshare, for mounts of its own")
    command = ["unshare", "-m", "sh", "-c", script]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=ROOT, env=env)
    if done.returncode == 77 or done.stderr.startswith("unshare"):
        lacking(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("mib", "served"), [(48, "plain_models"), (96, "service")])
def test_a_dev_shm_that_runs_full_refuses_what_finds_no_room_and_nothing_else(mib: int, served: str) -> None:
    mount = f"mount -t tmpfs -o size={mib}m tmpfs /dev/shm || exit 77"
    assert "all as it should be" in in_a_namespace(f"{mount}; exec {sys.executable} -m tests.full_shm {served}")


WRITE_PLANS = """
import os, sys
from pathlib import Path
from pinstream.engines.flavour import load_flavour
from pinstream.errors import ModelFileError
from pinstream.plans import BuildSpec, build_plan, cached_plan
from pinstream.preflight import Gpu
from pinstream_cli.main import main
onnx, disk = map(Path, sys.argv[1:])
rtx, spec, out = load_flavour("tensorrt_rtx"), BuildSpec(batch_sizes=(1, 2, 4, 8)), disk / "plans"
GPU = Gpu("NVIDIA RTX 4090", "8.9")

def content():
    return {path.name: path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"}

build_plan(onnx, out, spec, rtx, cache_dir=disk)
before, status = content(), os.statvfs(disk)
(disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - int(len(before["model.b1.plan"]) * 1.5)))
filled = content()
for attempt in (
    lambda: build_plan(onnx, out, spec, rtx, cache_dir=disk),
    lambda: cached_plan(onnx, spec, rtx, GPU, disk / "cache"),
    lambda: main(["build", str(onnx), "--plan", "-o", str(out), "--batch-sizes", "1,2,4,8"], standalone_mode=False),
):
    try:
        attempt()
    except (OSError, ModelFileError) as error:
        print(type(error).__name__, error)
    except SystemExit as error:
        print("exit", error.code)
    assert content() == filled, "what was there has changed, or something half written is left"
(disk / "filler").unlink()
build_plan(onnx, out, spec, rtx, cache_dir=disk)
entry = cached_plan(onnx, spec, rtx, GPU, disk / "cache")
assert {path.name for path in entry.iterdir()} == {path.name for path in out.iterdir()}
"""


def test_a_disk_that_runs_full_while_plans_are_written_leaves_the_earlier_ones(tmp_path: Path) -> None:
    installed_rtx()
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    (tmp_path / "disk").mkdir()
    (tmp_path / "write.py").write_text(WRITE_PLANS)
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}/disk || exit 77"
    said = in_a_namespace(f"{mount}; exec {sys.executable} {tmp_path}/write.py {onnx} {tmp_path}/disk 2>&1")
    assert "OSError [Errno 28] No space left on device" in said
    assert "ModelFileError the plan cache" in said
    assert "No space left on device; make room there, or name another directory" in said
    assert "exit 2" in said
    assert said.count("Traceback") == 0


def test_a_full_disk_for_temporary_files_is_told_and_nothing_is_left_on_it(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/disk || exit 77"
    serve = f"TMPDIR={tmp_path}/disk {sys.executable} -m pinstream_cli serve --model {classifier} 2>&1"
    said = in_a_namespace(f"{mount}; {serve}; echo rc $?; ls {tmp_path}/disk")
    assert "error: what Triton reads cannot be put together among temporary files: [Errno 28] No space left" in said
    assert said.endswith("or set TMPDIR to another directory\nrc 2\n")
