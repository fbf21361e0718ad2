"""README.md and docs have every option of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from pinstream_cli.main import main

ROOT = Path(__file__).parents[3]


def test_every_option_is_documented() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    documented = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(page.read_text() for page in pages)))
    missing = {option for option in _options(main, click.Context(main)) if option not in documented}
    assert missing == {"--version"}


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    """The long options of a command and of its subcommands."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            names = (*parameter.opts, *parameter.secondary_opts)
            yield from (name for name in names if name.startswith("--"))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from _options(subcommand, context)
