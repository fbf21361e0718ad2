"""What `pinstream serve` puts together is nobody else's to write, and what it is given neither under --verify.

Nor has a model that is verified code that runs before it is.
"""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import stat
from pathlib import Path

import pytest

from pinstream.verify import others_can_write
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.assemble import keep_to_us
from pinstream_cli.triton.ownership import check_code, check_owners, written_by_others


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_put_together_is_closed_and_what_is_only_linked_stays_as_it_is(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for directory in (theirs, ours, ours / "model"):
        directory.mkdir()
    for file in (theirs / "weights", ours / "model" / "config.pbtxt"):
        file.touch()
    for path in (theirs, theirs / "weights", ours / "model", ours / "model" / "config.pbtxt"):
        path.chmod(0o777)
    os.link(theirs / "weights", ours / "model" / "linked")
    (ours / "model" / "led").symlink_to(theirs)
    keep_to_us(ours)
    assert mode(ours / "model") == mode(ours / "model" / "config.pbtxt") == 0o755
    assert not others_can_write(ours / "model" / "config.pbtxt")
    assert mode(theirs) == mode(theirs / "weights") == 0o777


def test_all_of_a_repository_is_looked_at_where_links_lead_as_well(tmp_path: Path) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    for directory in (repository, elsewhere):
        directory.mkdir(mode=0o755)
    code = elsewhere / "model.py"
    code.touch(mode=0o644)
    (repository / "model").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)
    check_owners(repository)
    code.chmod(0o666)
    with pytest.raises(CommandError, match=r"--verify is given, and others can write .*/model\.py"):
        check_owners(repository)


@pytest.mark.parametrize("configuration", ["config.pbtxt", "configs/fast.pbtxt"])
def test_an_environment_that_a_configuration_names_is_looked_at(tmp_path: Path, configuration: str) -> None:
    config, environment = tmp_path / "repository" / "model" / configuration, tmp_path / "environment"
    for directory in (config.parent, environment / "bin"):
        directory.mkdir(mode=0o755, parents=True)
    named = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}\n'
    config.write_text('backend: "python"\n' + named)
    config.chmod(0o644)
    activate = environment / "bin" / "activate"
    activate.touch(mode=0o644)
    check_owners(tmp_path / "repository")
    for place in (activate, activate.parent, environment):
        place.chmod(0o777)
        with pytest.raises(CommandError, match=r"others can write .*/environment"):
            check_owners(tmp_path / "repository")
        place.chmod(0o755)
    environment.rename(tmp_path / "gone")
    with pytest.raises(CommandError, match=r"environment cannot be looked at: No such file"):
        check_owners(tmp_path / "repository")


def test_the_sidecar_beside_a_model_file_is_looked_at(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.json"):
        (tmp_path / name).touch(mode=0o644)
    check_owners(tmp_path / "model.onnx")
    (tmp_path / "model.json").chmod(0o666)
    with pytest.raises(CommandError, match=r"others can write .*/model\.json"):
        check_owners(tmp_path / "model.onnx")


VERIFY = 'parameters { key: "VERIFY" value { string_value: "true" } }\n'
OURS = 'backend: "pinstream"\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of our backend with versions 1 and 2, of which the second alone is served."""
    for version in ("1", "2"):
        (tmp_path / "repository" / "model" / version).mkdir(parents=True)
    (tmp_path / "repository" / "model" / "config.pbtxt").write_text(OURS)
    return tmp_path / "repository" / "model"


@pytest.mark.parametrize(
    "name",
    [
        "libtriton_pinstream.so",
        "1/libtriton_pinstream.so",
        "batchstrategy.so",
        "1/batchstrategy.so",
        "triton_python_backend_stub",
    ],
)
def test_code_that_runs_before_a_model_is_verified_is_refused(model: Path, name: str) -> None:
    check_code(model.parent, verify=True)
    (model / name).touch()
    check_code(model.parent, verify=False)
    with pytest.raises(CommandError, match=f"^--verify is given, and {model / name} is code that Triton runs before"):
        check_code(model.parent, verify=True)
    (model / "config.pbtxt").write_text(OURS + VERIFY)
    with pytest.raises(CommandError, match=f"^VERIFY is set, and {model / name} is code that Triton runs before"):
        check_code(model.parent, verify=False)


STRATEGY = 'parameters { key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "/lib.so" } }\n'


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/fast.pbtxt"])
@pytest.mark.parametrize(
    ("named", "words"),
    [
        ('runtime: "libother.so"\n', 'runtime: "libother.so", which Triton runs in place of'),
        (STRATEGY, 'the parameter TRITON_BATCH_STRATEGY_PATH: "/lib.so", which Triton runs beside'),
    ],
)
def test_a_library_that_a_configuration_names_is_refused_wherever_it_lies(
    model: Path, name: str, named: str, words: str
) -> None:
    config = model / name
    config.parent.mkdir(exist_ok=True)
    config.write_text(OURS + 'runtime: "model.py"\n')
    check_code(model.parent, verify=True)
    config.write_text(OURS + named)
    check_code(model.parent, verify=False)
    with pytest.raises(CommandError, match=f"and {config} has {words} this backend, unverified; leave it out"):
        check_code(model.parent, verify=True)
    config.write_text(OURS + named + VERIFY)
    with pytest.raises(CommandError, match=f"^VERIFY is set, and {config} has"):
        check_code(model.parent, verify=False)


@pytest.mark.parametrize("first", ["", 'backend: "python"\n'])
def test_a_model_is_ours_by_any_of_its_configurations(model: Path, first: str) -> None:
    (model / "config.pbtxt").write_text(first)
    (model / "configs").mkdir()
    (model / "configs" / "fast.pbtxt").write_text(OURS)
    check_code(model.parent, verify=True)
    (model / "libtriton_pinstream.so").touch()
    with pytest.raises(CommandError, match=r"libtriton_pinstream\.so is code that Triton runs before"):
        check_code(model.parent, verify=True)


def test_a_model_is_ours_by_its_name_where_its_configuration_says_nothing(model: Path) -> None:
    named = model.rename(model.with_name("model.pinstream"))
    (named / "config.pbtxt").write_text("")
    check_code(named.parent, verify=True)
    (named / "1" / "libtriton_pinstream.so").touch()
    with pytest.raises(CommandError, match=r"libtriton_pinstream\.so is code that Triton runs before"):
        check_code(named.parent, verify=True)


def test_a_carriage_return_ends_no_comment_as_it_ends_none_to_triton(model: Path) -> None:
    (model / "config.pbtxt").write_bytes(OURS.encode() + b'# \rbackend: "python"\n')
    (model / "libtriton_pinstream.so").touch()
    with pytest.raises(CommandError, match=r"libtriton_pinstream\.so is code that Triton runs before"):
        check_code(model.parent, verify=True)


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/fast.pbtxt"])
def test_a_configuration_that_triton_alone_may_read_is_refused(model: Path, name: str) -> None:
    """Triton 2.51 reads strings that are no UTF-8, and runs what such a configuration names."""
    config = model / name
    config.parent.mkdir(exist_ok=True)
    config.write_text(OURS + 'metric_tags { key: "a" value: "\\377" }\n')
    check_code(model.parent, verify=False)
    with pytest.raises(CommandError, match=f"^--verify is given, and of {model} {name} cannot be parsed"):
        check_code(model.parent, verify=True)
    with config.open("a") as more:
        more.write(VERIFY)
    with pytest.raises(CommandError, match=f"^VERIFY is set, and of {model} {name} cannot be parsed"):
        check_code(model.parent, verify=False)


@pytest.mark.parametrize("backend", ["./pinstream", "other/../pinstream"])
def test_a_backend_that_is_named_by_a_way_to_it_is_refused(model: Path, backend: str) -> None:
    """Triton looks for libtriton_./pinstream.so, in a directory of the version's."""
    (model / "config.pbtxt").write_text(f'backend: "{backend}"\n')
    with pytest.raises(CommandError, match=f'has backend: "{backend}", which leads out of Triton'):
        check_code(model.parent, verify=True)
    check_code(model.parent, verify=False)


@pytest.mark.parametrize("link", [False, True])
def test_an_environment_that_comes_with_a_model_is_refused_and_one_of_the_machine_is_not(
    model: Path, link: bool
) -> None:
    def name(environment: str) -> None:
        parameter = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}\n'
        (model / "config.pbtxt").write_text(OURS + parameter)

    outside = model.parents[1] / "environment"
    name(str(outside))
    check_code(model.parent, verify=True)
    if link:
        outside.symlink_to(model / "environment")
    for place in [str(outside)] if link else ["$$TRITON_MODEL_DIRECTORY/environment", f"{model}/../other/env.tar.gz"]:
        name(place)
        with pytest.raises(CommandError, match=r'config\.pbtxt has EXECUTION_ENV_PATH: ".*", in the repository'):
            check_code(model.parent, verify=True)


def test_a_repository_agent_of_another_place_than_tritons_own_is_refused(model: Path) -> None:
    agents = OURS + 'model_repository_agents {{ agents {{ name: "checksum" }} agents {{ name: "{}" }} }}\n'
    (model / "config.pbtxt").write_text(agents.format("other"))
    check_code(model.parent, verify=True)
    (model / "config.pbtxt").write_text(agents.format("../../model/1"))
    with pytest.raises(CommandError, match=r'has the repository agent "\.\./\.\./model/1", which leads out of Triton'):
        check_code(model.parent, verify=True)


@pytest.mark.parametrize("verify", ["true", "maybe"])
def test_a_model_whose_settings_are_wrong_asks_for_it_as_well(model: Path, verify: str) -> None:
    wrong = 'parameters { key: "SLOTS" value { string_value: "abc" } }\n'
    (model / "libtriton_pinstream.so").touch()
    (model / "config.pbtxt").write_text(OURS + wrong + VERIFY.replace("true", "false"))
    check_code(model.parent, verify=False)
    (model / "config.pbtxt").write_text(OURS + wrong + VERIFY.replace("true", verify))
    with pytest.raises(CommandError, match=r"^VERIFY is set, and .*/libtriton_pinstream\.so is code"):
        check_code(model.parent, verify=False)


def test_a_model_whose_versions_come_later_is_looked_at_as_well(model: Path) -> None:
    for version in ("1", "2"):
        (model / version).rmdir()
    check_code(model.parent, verify=True)
    (model / "triton_python_backend_stub").touch()
    with pytest.raises(CommandError, match="triton_python_backend_stub is code that Triton runs before"):
        check_code(model.parent, verify=True)


def test_models_of_other_backends_have_code_of_their_own(model: Path) -> None:
    (model / "triton_python_backend_stub").touch()
    (model / "config.pbtxt").write_text('backend: "python"\n')
    check_code(model.parent, verify=True)


@pytest.mark.parametrize("closed", [True, False])
def test_a_start_without_verify_tells_of_what_others_can_write(version: Path, closed: bool) -> None:
    model = version / "model.onnx"
    model.chmod(0o644 if closed else 0o666)
    console = Console(file=io.StringIO(), width=500)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoints = dataclasses.replace(Endpoints.free(), http=taken.getsockname()[1])
        # The port ends it before Triton starts.
        with (
            pytest.raises(CommandError, match="port"),
            serving(None, repositories=[version.parents[1]], endpoints=endpoints, console=console),
        ):
            pass
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("WARNING" in said) == (not closed)
    assert closed or f"others can write {model} (mode 666); chmod go-w {model}; whoever can write a model" in said


def test_what_cannot_be_looked_at_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert written_by_others(tmp_path) == ""
    (tmp_path / "model").mkdir(mode=0o755)
    (tmp_path / "model" / "model.py").touch(mode=0o644)
    assert written_by_others(tmp_path) == ""
    (tmp_path / "model" / "model.py").chmod(0o666)
    assert written_by_others(tmp_path).startswith(f"others can write {tmp_path}/model/model.py")
