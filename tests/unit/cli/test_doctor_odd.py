"""`pinstream doctor` on models that are odd in one way each; tests/server/test_doctor.py asks Triton about the same."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.serve import serve
from tests import onnx_models
from tests.odd_models import ODD_MODELS, Odd
from tests.unit.cli.test_doctor import ONE_LINE, free_ports, report, run

Checks = list[dict[str, str]]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    repository = tmp_path_factory.mktemp("odd")
    for odd in ODD_MODELS:
        odd.write(repository)
    checks: Checks = json.loads(run("--json", "--model-repository", repository).stdout)["checks"]
    return checks


@pytest.mark.parametrize("odd", ODD_MODELS, ids=lambda odd: odd.name)
def test_what_triton_refuses_is_to_be_fixed_and_nothing_else(said: Checks, odd: Odd) -> None:
    faults = [check for check in said if check["area"] == f"model {odd.name}" and check["status"] == "FIX"]
    assert bool(faults) == bool(odd.words), faults
    assert all(fault["remedy"] for fault in faults)
    assert not odd.words or any(odd.words in fault["found"] for fault in faults), faults
    warnings = [check for check in said if check["area"] == f"model {odd.name}" and check["name"] == "decoupled"]
    assert bool(warnings) == bool(odd.warns), warnings
    assert all(odd.warns in warning["found"] and warning["status"] == "WARN" for warning in warnings)


def test_some_repositories_are_one_to_triton(tmp_path: Path) -> None:
    plain, steps, other = (tmp_path / name for name in ("plain", "steps", "other"))
    for repository in (plain, steps, other):
        repository.mkdir()
    odd = {model.name: model for model in ODD_MODELS}
    odd["plain"].write(plain)
    odd["steps"].write(steps)
    odd["plain"].write(other)
    arguments = ("--model-repository", plain, "--model-repository", steps)
    assert report(*arguments, "--model-repository", plain)[0] == 0
    code, checks = report(*arguments, "--model-repository", other)
    assert code == 1
    assert "plain is in" in checks[f"repository {other}", "models"]["found"]


def test_what_is_no_repository(tmp_path: Path) -> None:
    next(odd for odd in ODD_MODELS if odd.name == "plain").write(tmp_path)
    (tmp_path / "notes").symlink_to("nonesuch")
    code, checks = report("--model-repository", tmp_path)
    assert code == 1
    assert checks[f"repository {tmp_path}", "notes"]["status"] == "FIX"
    check = report("--model-repository", tmp_path / "plain")[1][f"repository {tmp_path / 'plain'}", "config.pbtxt"]
    assert (check["status"], check["remedy"]) == ("FIX", f"name its parent, {tmp_path}")


def test_a_file_of_our_backend_lies_beside_the_others(tmp_path: Path) -> None:
    # Triton hands over the directory of the file: the backend would look for sub/sub/model.onnx.
    onnx_models.classifier(tmp_path / "mine" / "1" / "sub" / "model.onnx")
    (tmp_path / "mine" / "config.pbtxt").write_text(ONE_LINE + 'default_model_filename: "sub/model.onnx"\n')
    code, checks = report("--model-repository", tmp_path)
    assert code == 1
    assert "no sub/model.onnx in" in checks["model mine", "1/"]["found"]


def test_an_environment_that_others_can_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    plain = next(odd for odd in ODD_MODELS if odd.name == "plain")
    archive = tmp_path / "environment.tar.gz"
    tarfile.open(archive, "w:gz").close()
    named = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{archive}" }} }}\n'
    replace(plain, config=f"{plain.config}{named}").write(tmp_path / "repository")
    area, name = "model plain", "EXECUTION_ENV_PATH permissions"
    assert (area, name) not in report("--model-repository", tmp_path / "repository")[1]
    archive.chmod(0o666)
    code, checks = report("--model-repository", tmp_path / "repository")
    assert (code, checks[area, name]["status"]) == (0, "WARN")
    assert f"others can write {archive}" in checks[area, name]["found"]
    archive.write_bytes(archive.read_bytes()[:12])
    assert "no archive" in report("--model-repository", tmp_path / "repository")[1][area, "EXECUTION_ENV_PATH"]["found"]


@pytest.mark.parametrize(("name", "file"), [("$(exit)", "model.py"), ("$(exit).pinstream", "model.onnx")])
def test_serve_refuses_a_name_that_triton_would_run_where_nothing_says_with_what(
    tmp_path: Path, name: str, file: str
) -> None:
    """Of a model without a configuration Triton goes by its files, and by its name."""
    code = tmp_path / name / "1" / file
    code.parent.mkdir(parents=True)
    code.touch()
    result = CliRunner().invoke(serve, ["--model-repository", str(tmp_path), *free_ports()])
    assert result.exit_code == 2
    assert f"error: {tmp_path / name}: Triton's Python backend gives this to a shell as it is" in result.output


@pytest.mark.parametrize("other", ['backend: "python"', 'backend: "python" name: "\\xff'])
def test_serve_refuses_a_name_that_triton_would_run_by_another_configuration(tmp_path: Path, other: str) -> None:
    """`--model-config-name` chooses one, and Triton may read what cannot be read here."""
    model = tmp_path / "$(exit)"
    (model / "configs").mkdir(parents=True)
    (model / "config.pbtxt").write_text('backend: "onnxruntime"')
    arguments = ["--model-repository", str(tmp_path), "--model-config-name=other", *free_ports()]
    result = CliRunner().invoke(serve, arguments)
    assert "gives this to a shell as it is" not in result.output
    (model / "configs" / "other.pbtxt").write_text(other)
    result = CliRunner().invoke(serve, arguments)
    assert result.exit_code == 2
    assert f"error: {model}: Triton's Python backend gives this to a shell as it is" in result.output


def test_serve_refuses_a_place_that_triton_would_trip_over(tmp_path: Path) -> None:
    plain = next(odd for odd in ODD_MODELS if odd.name == "plain")
    for place in ("of two words", "gr\u00fcn", "$(exit)"):
        (tmp_path / place).mkdir()
        plain.write(tmp_path / place)
        check = report("--model-repository", tmp_path / place)[1]["model plain", "path"]
        assert (check["status"], check["found"].startswith(str(tmp_path / place))) == ("FIX", True)
        result = CliRunner().invoke(serve, ["--model-repository", str(tmp_path / place)])
        assert result.exit_code
        assert "gives this to a shell as it is" in result.output
    model = str(onnx_models.classifier(tmp_path / "two words.onnx"))
    result = CliRunner().invoke(serve, ["--model", model, *free_ports()])
    assert "give one with --name" in result.output
