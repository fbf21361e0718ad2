"""Parameters of Triton's Python backend, which runs ours too."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from pinstream.verify import others_can_write
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.repository import ENVIRONMENT, Model

# Where inputs are.
FORCED = "FORCE_CPU_ONLY_INPUT_TENSORS"


def check_python_backend(area: str, model: Model) -> Iterator[Check]:
    """The parameters of a model that Triton's Python backend runs.

    Args:
        area: What the checks belong to.
        model: The model.
    """
    if FORCED in model.config.parameters:
        forced = model.config.parameters[FORCED].string_value
        if forced not in ("yes", "no"):
            yield Check(area, FORCED, "FIX", f"is {forced!r}", "write yes or no, in small letters")
    if model.environment is not None:
        yield from _environment(area, model.environment)


def _environment(area: str, environment: Path) -> Iterator[Check]:
    place = environment / "bin" / "activate" if environment.is_dir() else environment
    if not place.exists():
        yield Check(area, ENVIRONMENT, "FIX", f"{place} is not there", f"put it there, or leave {ENVIRONMENT} out")
        return
    if place == environment and not _is_archive(place):
        yield Check(area, ENVIRONMENT, "FIX", f"{place} is no archive of tar", "name one, or a directory")
    # It is run before the model, and before VERIFY is looked at.
    if others := others_can_write(place):
        found, _, remedy = others.rpartition("; ")
        yield Check(area, f"{ENVIRONMENT} permissions", "WARN", found, remedy)


def _is_archive(file: Path) -> bool:
    try:
        return file.is_file() and tarfile.is_tarfile(file)
    except EOFError:  # compressed, and cut off
        return False
