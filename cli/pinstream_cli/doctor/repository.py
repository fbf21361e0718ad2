"""A model repository, held file by file against what Triton and our backend will do with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.model_files import check_files, readable
from pinstream_cli.doctor.steps import check_python
from pinstream_cli.triton.repository import CONFIG, Model, RepositoryError, model_directories, read_model

PYTHON, OURS, ENSEMBLE = "python", "pinstream", "ensemble"


def check_repository(repository: Path, backends: Path | None) -> Iterator[Check]:
    """Every model of a repository.

    Args:
        repository: The directory that --model-repository names.
        backends: Triton's own backend directory; None leaves unknown backends unjudged.
    """
    area = f"repository {repository}"
    if not repository.is_dir():
        yield Check(area, "directory", "FIX", "is not there", "name a directory with --model-repository")
        return
    directories = model_directories(repository)
    if not directories:
        yield Check(
            area, "models", "FIX", "none", f"put one there: {repository}/NAME/{CONFIG} and {repository}/NAME/1/"
        )
    names = {path.name for path in directories}
    for directory in directories:
        yield from _check_model(directory, names, backends)


def _check_model(directory: Path, names: set[str], backends: Path | None) -> Iterator[Check]:
    area = f"model {directory.name}"
    try:
        model = read_model(directory)
    except RepositoryError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check(area, CONFIG, "FIX", found, remedy or f"correct {directory / CONFIG}")
        return
    yield Check(area, CONFIG, "OK", f"max_batch_size {model.config.max_batch_size or 'left to the engine'}")
    if model.config.name not in ("", model.name):
        remedy = f'remove name: "{model.config.name}" from {CONFIG}, or rename the directory'
        yield Check(area, "name", "FIX", f'the directory is {model.name}, {CONFIG} says "{model.config.name}"', remedy)
    yield _backend(area, model, backends)
    if not model.versions:
        yield Check(area, "versions", "FIX", "no version directory", f"mkdir {directory / '1'} and put the model there")
    for version in model.versions:
        yield from _check_version(area, model, version)
    yield from _check_warmup(area, model)
    yield from _check_steps(area, model, names)


def _kind(model: Model) -> str:
    return str(model.config.backend or model.config.platform)


def _backend(area: str, model: Model, backends: Path | None) -> Check:
    kind = _kind(model)
    if kind in (OURS, PYTHON, ENSEMBLE):
        return Check(area, "backend", "OK", kind)
    if not kind:
        return Check(area, "backend", "WARN", "none; Triton guesses by the files", f'write backend: "{OURS}"')
    if backends is not None and not (backends / kind).is_dir():
        there = ", ".join(sorted(path.name for path in backends.iterdir()))
        remedy = f'write backend: "{OURS}", or use a Triton with that backend'
        return Check(area, "backend", "FIX", f"{kind}, which this Triton has not (it has {there}, {OURS})", remedy)
    return Check(area, "backend", "OK", kind)


def _check_version(area: str, model: Model, version: Path) -> Iterator[Check]:
    if _kind(model) == PYTHON:
        yield from check_python(area, model, version)
    elif _kind(model) == OURS:
        yield from check_files(area, model, version)


def _check_warmup(area: str, model: Model) -> Iterator[Check]:
    """Triton does not load a model whose warm-up data is missing."""
    inputs = [entry for sample in model.config.model_warmup for entry in sample.inputs.values()]
    for name in dict.fromkeys(entry.input_data_file for entry in inputs if entry.input_data_file):
        yield readable(area, model.path / "warmup" / name)


def _check_steps(area: str, model: Model, names: set[str]) -> Iterator[Check]:
    steps = model.config.ensemble_scheduling.step
    missing = [step.model_name for step in steps if step.model_name not in names]
    if missing:
        yield Check(area, "steps", "FIX", f"no model {', '.join(missing)} in the repository", "add it")
    elif steps:
        yield Check(area, "steps", "OK", " -> ".join(dict.fromkeys(step.model_name for step in steps)))
