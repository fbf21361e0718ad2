"""Whether results can be written where they are asked for: told before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

from pinstream_cli.errors import CommandError


def check_file(option: str, path: Path | None) -> None:
    """See that a file can be written; its directories may still have to be made. None is no destination.

    Raises:
        CommandError: It cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise CommandError(f"{option} {path} is a directory; name a file")
    if path.exists():
        _check_writable(option, path, path)
    else:
        check_directory(option, path.parent, path)


def check_directory(option: str, path: Path | None, named: Path | None = None) -> None:
    """The same for a directory into which files go.

    Args:
        option: That names it.
        path: The directory.
        named: What the option names, where that is a file in it.

    Raises:
        CommandError: It cannot be written to.
    """
    if path is None:
        return
    path, named = path.absolute(), named or path
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise CommandError(f"{option} {named} cannot be written: {there} is no directory")
    _check_writable(option, named, there)


def _check_writable(option: str, named: Path, there: Path) -> None:
    if not os.access(there, os.W_OK):
        raise CommandError(f"{option} {named} cannot be written: {there} is write-protected")
