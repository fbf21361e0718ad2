"""Whether results can be written where they are asked for: told before anything is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
    if path.is_file():
        _attempt(option, path, path, lambda: path.open("ab").close())
    elif not path.exists():  # else it is a device or a pipe, which are for whoever named them
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
    _attempt(option, named, there, lambda: _make_a_file_in(there))


def _make_a_file_in(directory: Path) -> None:
    # As it is made later. Permissions do not tell: root has them in /proc as well, where nothing can be made.
    with tempfile.TemporaryDirectory(prefix=".pinstream-", dir=directory) as made:
        (Path(made) / "file").touch()


def _attempt(option: str, named: Path, there: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise CommandError(f"{option} {named} cannot be written: {there}: {error.strerror}") from None
