"""What `pinstream serve` puts together is nobody else's to write, and what it is given neither under --verify."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pinstream.verify import others_can_write
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.assemble import keep_to_us
from pinstream_cli.triton.ownership import check_owners


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


def test_an_environment_that_a_configuration_names_is_looked_at(tmp_path: Path) -> None:
    model, environment = tmp_path / "repository" / "model", tmp_path / "environment"
    for directory in (model, environment / "bin"):
        directory.mkdir(mode=0o755, parents=True)
    named = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}\n'
    (model / "config.pbtxt").write_text('backend: "python"\n' + named)
    (model / "config.pbtxt").chmod(0o644)
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
