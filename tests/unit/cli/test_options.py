"""What holds for every command's options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pinstream_cli.main import main
from pinstream_cli.options import FiniteRange, FromHere


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, and the words that call it."""
    if not isinstance(group, click.Group):
        yield path, group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, (*path, name))


ALL = dict(commands(main))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_no_option_takes_what_is_no_number(words: tuple[str, ...]) -> None:
    for option in ALL[words].params:
        if isinstance(option.type, (click.FloatRange, click.types.FloatParamType)):
            assert isinstance(option.type, FiniteRange), option.name


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "words", ["tune . --p99-ms", "bench engine --window", "bench timeline --seconds", "serve --startup-timeout"]
)
def test_what_is_no_number_is_refused(words: str, number: str) -> None:
    result = CliRunner().invoke(main, [*words.split(), number])
    assert result.exit_code == 2
    assert "no finite number" in result.stderr or "is not in the range" in result.stderr


@pytest.mark.parametrize("words", [*ALL, ("bench",)], ids=" ".join)
def test_help_shows_examples_a_line_each(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert "\\b" not in result.stdout
    assert "\b" not in result.stdout
    for line in result.stdout.splitlines():
        assert line.count("pinstream " + words[0] + " ") <= 1, line


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("model.onnx", "{dir}/here/model.onnx"),
        ("../model.onnx", "{dir}/model.onnx"),
        ("../..", "{dir}/.."),
        (".", "{dir}/here"),
        # Where a link leads only the file system tells.
        ("link/../model.onnx", "{dir}/here/link/../model.onnx"),
        ("/models/../model.onnx", "/models/../model.onnx"),
    ],
)
def test_a_path_means_the_same_once_its_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, meant: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    expected = Path(meant.format(dir=tmp_path).replace(f"{tmp_path}/..", str(tmp_path.parent)))
    assert FromHere().convert(named, None, None) == expected
    here.rmdir()
    if not named.startswith("/"):
        assert FromHere().convert(named, None, None) == Path(named)
