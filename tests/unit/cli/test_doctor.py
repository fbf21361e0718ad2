"""`pinstream doctor` on real repositories, real ports and a real /dev/shm: each fault is found and named."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pinstream import sidecar as sidecars
from pinstream_cli.doctor import doctor, machine
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import awake, preflight
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.preflight import check_shared_memory
from pinstream_cli.triton.shared_memory import needs
from tests import onnx_models

ONE_LINE = 'backend: "pinstream"\n'


def free_ports() -> list[str]:
    """Options of `doctor` and `serve`, so that no test depends on who has the usual ports."""
    free = Endpoints.free()
    return [f"--http-port={free.http}", f"--grpc-port={free.grpc}", f"--metrics-port={free.metrics}"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(doctor, [*free_ports(), *map(str, arguments)])


def report(*arguments: str | Path) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
    """Exit code, and the checks by area and name."""
    result = run("--json", *arguments)
    content: dict[str, Any] = json.loads(result.stdout)
    assert content["fit"] == (result.exit_code == 0)
    return result.exit_code, {(check["area"], check["name"]): check for check in content["checks"]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one sound model, `classifier`, with a sidecar."""
    directory = tmp_path / "repository" / "classifier" / "1"
    model = onnx_models.classifier(directory / "model.onnx")
    (directory.parent / "config.pbtxt").write_text(ONE_LINE)
    entry = sidecars.Sidecar("onnx", "model.onnx", sidecars.file_sha256(model), (), ())
    sidecars.write(directory / "model.json", entry)
    return tmp_path / "repository"


def test_a_sound_machine_and_repository(repository: Path) -> None:
    code, checks = report("--model-repository", repository)
    assert code == 0, [check for check in checks.values() if check["status"] == "FIX"]
    for name in ("Triton", "Python stub", "numpy", "tritonclient", "onnxruntime", "TensorRT"):
        assert checks["versions", name]["status"] == "OK"
    assert checks["model classifier", "1/model.json"]["status"] == "OK"
    assert checks["model classifier", "1/model.onnx here"]["found"] == "ONNX Runtime opens it"
    # 3 x 8 x 8 floats are 768 bytes, 10 are 40; the default batch of a dynamic model is 8.
    arithmetic = checks["machine", "/dev/shm for classifier"]["found"]
    assert arithmetic.startswith("1 x (8 x (2 x pixels 768 B + probabilities 40 B)")


def test_triton_says_its_own_version() -> None:
    _, checks = report()
    assert re.match(r"\d+\.\d+\.\d+", checks["versions", "Triton"]["found"])


def test_limits_of_the_shell_are_told_with_the_command_that_lifts_them() -> None:
    command = [sys.executable, "-m", "pinstream_cli", "doctor", "--json"]
    few = "ulimit -n 512; ulimit -f 100000; "
    done = subprocess.run(["sh", "-c", few + " ".join(command)], capture_output=True, text=True, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["open files"]["status"] == checks["file size"]["status"] == "WARN"
    assert checks["open files"]["remedy"].startswith("ulimit -n 4096 as root")
    assert checks["file size"]["remedy"].startswith("ulimit -f unlimited as root")
    assert checks["address space"]["status"] == "OK"


def test_a_share_of_the_cores_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(awake, "CGROUPS", tmp_path)
    monkeypatch.setattr(awake, "OWN_CGROUP", tmp_path / "own")
    assert report()[1]["machine", "cores"]["status"] == "OK"
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    code, checks = report()
    check = checks["machine", "cores"]
    assert (code, check["status"]) == (0, "WARN")
    assert check["found"].endswith("of whose time only a share is had: cpu.max is 150000 100000")
    assert "--cpuset-cpus" in check["remedy"]


def test_little_room_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_TEMPORARY", 1 << 60)
    code, checks = report()
    assert (code, checks["machine", "temporary files"]["status"]) == (0, "WARN")
    monkeypatch.setattr(machine, "LEAST_TEMPORARY", 0)
    assert report()[1]["machine", "temporary files"]["status"] == "OK"


def test_the_table_says_the_same_and_how_much_of_it(repository: Path) -> None:
    (repository / "classifier" / "config.pbtxt").write_text(ONE_LINE + 'parameters { key: "BUCKET" }\n')
    result = run("--model-repository", repository)
    assert result.exit_code == 1
    assert "did you mean BUCKETS" in result.stdout.replace("\n", " ").replace("  ", "")
    assert "1 FIX" in result.stdout


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        ("backend: pinstream", "config.pbtxt", "cannot be parsed"),
        (ONE_LINE + f"output {{ data_type: {2**63} }}", "config.pbtxt", "cannot be parsed"),
        (ONE_LINE + "max_batch: 8", "config.pbtxt", "max_batch"),
        (ONE_LINE + 'name: "other"', "name", "other"),
        ('backend: "tensorrt"', "backend", "tensorrt, which this Triton has not"),
        ('platform: "ensemble" ensemble_scheduling { step { model_name: "gone" } }', "steps", "no model gone"),
        (ONE_LINE + 'default_model_filename: "other.onnx"', "1/", "no other.onnx"),
    ],
)
def test_a_wrong_configuration(repository: Path, config: str, name: str, words: str) -> None:
    (repository / "classifier" / "config.pbtxt").write_text(config)
    code, checks = report("--model-repository", repository)
    assert code == 1
    found = checks["model classifier", name]
    assert found["status"] == "FIX"
    assert words in found["found"]
    assert found["remedy"]


def test_wrong_files(repository: Path) -> None:
    (repository / "classifier" / "1" / "model.onnx").write_bytes(b"not a model")
    (repository / "no_versions").mkdir()
    (repository / "no_versions" / "config.pbtxt").write_text(ONE_LINE)
    (repository / "nothing").mkdir()
    code, checks = report("--model-repository", repository)
    assert code == 1
    assert "SHA-256" in checks["model classifier", "1/model.json"]["found"]
    assert "not an ONNX model" in checks["model classifier", "1/model.onnx here"]["found"]
    assert checks["model no_versions", "versions"]["status"] == "FIX"
    assert "no config.pbtxt" in checks["model nothing", "config.pbtxt"]["found"]


def test_no_repository_and_an_empty_one(tmp_path: Path) -> None:
    assert report("--model-repository", tmp_path / "none")[0] == 1
    assert report("--model-repository", tmp_path)[0] == 1


def test_a_port_that_something_else_has() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, checks = report("--http-port", str(port))
    assert code == 1
    assert "choose another with --http-port" in checks["machine", f"port {port} (HTTP)"]["remedy"]


@pytest.mark.parametrize("sizes", [1, 2, 30, 3000])
def test_dims_that_no_machine_could_hold_are_what_is_to_be_corrected(repository: Path, sizes: int) -> None:
    """The product of the most of them has more digits than a float, or than Python writes of an integer."""
    dims = ", ".join([str((1 << 63) - 1)] * sizes)
    tensor = f'{{ name: "x" data_type: TYPE_FP32 dims: [ {dims} ] }}'
    (repository / "classifier" / "config.pbtxt").write_text(f'backend: "python"\ninput {tensor}\n')
    ((size, model),) = [(model.needed, str(model)) for model in needs([repository])]
    assert len(model) < 200
    check = report("--model-repository", repository)[1]["machine", "/dev/shm"]
    assert check["status"] == "FIX"
    with pytest.raises(CommandError) as caught:
        check_shared_memory(size, model)
    for said in (f"{check['found']} {check['remedy']}", str(caught.value)):
        assert re.search(r"more than the \d+ MiB of memory of this machine.* dims, max_batch_size or ", said)
        assert "shm-size" not in said


def test_dev_shm_that_could_be_larger_is_to_be_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_shared_memory", lambda: 3 * preflight.MIB)
    check_shared_memory(3 * preflight.MIB, "")
    with pytest.raises(CommandError, match=r"3 MiB free, and the models need 4 MiB \(x: 4\); .*--shm-size=8m, or"):
        check_shared_memory(3 * preflight.MIB + 1, "x: 4")
