"""Python's caches of models in Python, made before a Triton that polls their repository looks at it."""

from __future__ import annotations

import compileall
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pinstream_cli.triton.arguments import control_mode
from pinstream_cli.triton.model_versions import version_numbers
from pinstream_cli.triton.repository import model_directories

# Of compileall: print nothing. What does not compile is left to Triton to tell; what cannot be written stays as it is.
_SILENT = 2


def compile_models(repositories: Iterable[Path], arguments: Sequence[str]) -> None:
    """Compile the code that lies in repositories, where Triton is to poll them.

    Triton's stubs write a `__pycache__` beside all that they import, whatever PYTHONDONTWRITEBYTECODE says. To a Triton
    that polls, the model is a changed one then, and it loads it once more.

    Args:
        repositories: Model repositories.
        arguments: tritonserver's arguments.
    """
    if control_mode(arguments) != "poll":
        return
    for model in (model for repository in repositories for model in model_directories(repository)):
        # What this user may not read, Triton may not either, and says so.
        with contextlib.suppress(OSError):
            for version in version_numbers(model):
                # As the stubs do, whatever this process was told.
                compileall.compile_dir(model / version, quiet=_SILENT, optimize=0)
