"""`pinstream doctor` on files that are no files, and on who else can write what a model is made of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pinstream_cli.apart import apart
from pinstream_cli.doctor import opened
from pinstream_cli.triton.repository import RepositoryError, read_model
from tests import onnx_models
from tests.odd_models import BATCHED, CODE, TENSORS
from tests.unit.cli.test_doctor import ONE_LINE, free_ports, report

VERIFY = 'parameters { key: "VERIFY" value { string_value: "true" } }\n'
LABELS = 'output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" }\n'


def test_pipes_are_not_waited_for(version: Path) -> None:
    repository = version.parents[1]
    pipes = {
        "configuration": ("config.pbtxt", ONE_LINE),
        "model_file": ("1/model.onnx", ONE_LINE),
        "sidecar": ("1/model.json", ONE_LINE + VERIFY),
        "labels": ("labels.txt", ONE_LINE + LABELS),
    }
    for model, (file, config) in pipes.items():
        shutil.copytree(version.parent, repository / model)
        (repository / model / "config.pbtxt").write_text(config)
        (repository / model / file).unlink(missing_ok=True)
        os.mkfifo(repository / model / file)
    # As a process of its own, so that a test that fails ends.
    command = [sys.executable, "-m", "pinstream_cli", "doctor", "--json", "--model-repository", str(repository)]
    done = subprocess.run([*command, *free_ports()], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    faulty = {check["area"] for check in json.loads(done.stdout)["checks"] if check["status"] == "FIX"}
    assert faulty == {f"model {model}" for model in pipes}


@pytest.mark.parametrize("name", ["config.pbtxt", "1/model.json"])
def test_of_a_file_that_only_looks_large_no_more_is_read_than_any_has(version: Path, name: str) -> None:
    with (version.parent / name).open("a") as file:
        file.truncate(20 << 30)
    command = [sys.executable, "-m", "pinstream_cli", "doctor", "--json", "--model-repository", version.parents[1]]
    limited = ["bash", "-c", 'ulimit -v 8000000; exec "$@"', "bash", *map(str, command), *free_ports()]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (check,) = (check for check in json.loads(done.stdout)["checks"] if "is larger than 16 MiB" in check["found"])
    assert (check["area"], check["status"]) == ("model mine", "FIX")


def test_a_model_whose_functions_make_millions_of_nodes_is_not_opened(version: Path) -> None:
    onnx_models.doubling(version / "model.onnx", 40)
    _, checks = report("--model-repository", version.parents[1])
    check = checks["model mine", "1/model.onnx here"]
    assert check["status"] == "FIX"
    assert "has functions that make more than 20,000 nodes" in check["found"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the ONNX Runtime of Python 3.10 opens it sooner than that")
def test_a_model_that_takes_long_to_open_is_given_up(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "PATIENCE_S", 2.5)
    repository = version.parents[1]
    for name in ("first", "last"):
        shutil.copytree(version.parent, repository / name)
    # 5 s where nothing else runs: within the limit on functions, and as deep as ONNX Runtime takes them.
    onnx_models.calling_down(version / "model.onnx", 95, 200)
    code, checks = report("--model-repository", repository)
    assert code == 1
    check = checks["model mine", "1/model.onnx here"]
    assert check["status"] == "FIX"
    assert check["found"] == f"ONNX Runtime: opening {version}/model.onnx took more than 2.5 s, and was stopped"
    assert "export it again, or take it out" in check["remedy"]
    for name in ("first", "last"):
        assert checks[f"model {name}", "1/model.onnx here"]["status"] == "OK"


def ending_at_mine(files: Sequence[str], progress: Callable[[str], None]) -> list[Any]:
    """Opens files as ONNX Runtime would whose process ends at one of them."""

    def told(step: str) -> None:
        progress(step)
        if "/mine/" in step:
            os.kill(os.getpid(), signal.SIGSEGV)

    return opened.signatures(files, told)


def test_a_model_that_ends_the_process_that_opens_it_is_told(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "apart", lambda who, _, *given, **named: apart(who, ending_at_mine, *given, **named))
    shutil.copytree(version.parent, version.parents[1] / "other")
    _, checks = report("--model-repository", version.parents[1])
    check = checks["model mine", "1/model.onnx here"]
    assert check["status"] == "FIX"
    assert f"came to an end (SIGSEGV) while opening {version}/model.onnx" in check["found"]
    assert checks["model other", "1/model.onnx here"]["status"] == "OK"


def test_all_models_are_opened_by_one_process(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(version.parent, version.parents[1] / "other")
    onnx_models.classifier(version.with_name("2") / "model.onnx")
    begun = []

    def counted(*given: Any, **named: Any) -> Any:
        begun.append(given)
        return apart(*given, **named)

    monkeypatch.setattr(opened, "apart", counted)
    code, checks = report("--model-repository", version.parents[1])
    assert code == 0
    assert sum(name.endswith("/model.onnx here") for _, name in checks) == 3
    assert len(begun) == 1


def test_a_model_is_not_read_from_a_device(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").symlink_to("/dev/zero")
    with pytest.raises(RepositoryError, match="is no regular file"):
        read_model(tmp_path)


def _open_configuration(version: Path) -> None:
    (version.parent / "config.pbtxt").chmod(0o666)


def _open_repository(version: Path) -> None:
    version.parents[1].chmod(0o777)


def _open_place_of_a_link(version: Path) -> None:
    place = version.parents[2] / "store"
    place.mkdir()
    (version / "model.onnx").rename(place / "model.onnx")
    (version / "model.onnx").symlink_to(place / "model.onnx")
    place.chmod(0o777)


@pytest.mark.parametrize(
    ("damage", "place"),
    [(_open_configuration, "config.pbtxt"), (_open_repository, "repository"), (_open_place_of_a_link, "store")],
)
def test_who_writes_what_a_model_is_made_of_is_told(version: Path, damage: Callable[[Path], None], place: str) -> None:
    damage(version)
    check = report("--model-repository", version.parents[1])[1]["model mine", "1/ permissions"]
    assert check["status"] == "WARN"
    assert place in check["found"]
    assert check["remedy"]


def test_ensembles_are_made_of_their_configuration(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    maps = 'input_map { key: "a" value: "a" } output_map { key: "b" value: "b" }'
    step = f'step {{ model_name: "one" model_version: -1 {maps} }}'
    for name, config in (
        ("one", BATCHED),
        ("both", f'platform: "ensemble"\nmax_batch_size: 4\n{TENSORS}ensemble_scheduling {{ {step} }}\n'),
    ):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
    (repository / "one" / "1" / "model.py").write_bytes(CODE)
    assert report("--model-repository", repository)[0] == 0
    (repository / "both" / "config.pbtxt").chmod(0o666)
    assert report("--model-repository", repository)[1]["model both", "1/ permissions"]["status"] == "WARN"


def test_a_version_that_triton_leaves_out_keeps_nobody_from_serving(version: Path) -> None:
    onnx_models.classifier(version.with_name("2") / "model.onnx")
    (version / "model.onnx").write_bytes(b"damaged")
    code, checks = report("--model-repository", version.parents[1])
    assert code == 0
    check = checks["model mine", "1/model.onnx here"]
    assert check["status"] == "WARN"
    assert check["found"].endswith("(version_policy leaves it out)")


@pytest.mark.parametrize(
    "code",
    ["1/libtriton_pinstream.so", "libtriton_python.so", "1/batchstrategy.so", "triton_python_backend_stub", "runtime"],
)
def test_code_that_triton_runs_in_place_of_the_backend_is_told(version: Path, code: str) -> None:
    config = version.parent / "config.pbtxt"
    text = config.read_text()
    if code == "runtime":
        # Where a backend's library lies, too.
        (version / "libother.so").touch()
        text += 'runtime: "libother.so"\n'
        found, remedy = f'{config} has runtime: "libother.so"', "leave it out"
    else:
        (version.parent / code).touch()
        found, remedy = f"{version.parent / code} is code that Triton runs before this backend", "remove it"
    for asks, status in (("", "WARN"), (VERIFY, "FIX")):
        config.write_text(text + asks)
        check = report("--model-repository", version.parents[1])[1]["model mine", "code"]
        assert (check["status"], check["remedy"]) == (status, remedy)
        assert check["found"].startswith(found)


def test_code_of_a_model_whose_settings_are_wrong_is_told_as_the_server_refuses_it(version: Path) -> None:
    (version / "libtriton_pinstream.so").touch()
    with (version.parent / "config.pbtxt").open("a") as config:
        config.write(VERIFY + 'parameters { key: "SLOTS" value { string_value: "abc" } }\n')
    assert report("--model-repository", version.parents[1])[1]["model mine", "code"]["status"] == "FIX"


def test_a_model_of_ours_has_no_code_to_tell_of(version: Path) -> None:
    # As in the configuration that Triton gives out itself.
    with (version.parent / "config.pbtxt").open("a") as config:
        config.write('runtime: "model.py"\n')
    code, checks = report("--model-repository", version.parents[1])
    assert code == 0
    assert ("model mine", "code") not in checks


def test_who_writes_what_triton_runs_of_a_model_in_python_is_told(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "code"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_bytes(CODE)
    (model / "config.pbtxt").write_text(BATCHED)
    stub = model / "triton_python_backend_stub"
    stub.touch(mode=0o755)
    checks = report("--model-repository", tmp_path / "repository")[1]
    assert checks["model code", "1/ permissions"]["status"] == "OK"
    assert ("model code", "code") not in checks
    stub.chmod(0o777)
    check = report("--model-repository", tmp_path / "repository")[1]["model code", "1/ permissions"]
    assert check["status"] == "WARN"
    assert f"others can write {stub}" in check["found"]
