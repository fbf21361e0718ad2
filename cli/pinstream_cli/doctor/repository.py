"""A model repository, held file by file against what Triton and our backend will do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.engines import find_model_file
from pinstream.engines.flavour import load_flavour
from pinstream.engines.plan_source import described_plans
from pinstream.errors import ModelFileError, PinstreamError
from pinstream.preflight import Gpu, check_plan, this_gpu
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.repository import CONFIG, Model, RepositoryError, model_directories, read_model, spec_of

PYTHON, OURS, ENSEMBLE = "python", "pinstream", "ensemble"
# The name that the Python backend itself falls back to.
PYTHON_FILE = "model.py"


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
        yield _readable(area, version / (model.config.default_model_filename or PYTHON_FILE))
    elif _kind(model) == OURS:
        try:
            file = find_model_file(version, model.options)
        except PinstreamError as error:
            yield _failed(area, f"{version.name}/", error)
            return
        yield _readable(area, file)
        yield from _sidecar(area, file)
        yield _loadable(area, model, version, file)


def _readable(area: str, file: Path) -> Check:
    name = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return Check(area, name, "FIX", "is not there", f"put it there: {file}")
    if not os.access(file, os.R_OK):
        return Check(area, name, "FIX", "cannot be read by this user", f"chmod a+r {file}")
    return Check(area, name, "OK", f"{file.stat().st_size:,} bytes")


def _sidecar(area: str, file: Path) -> Iterator[Check]:
    path = file.parent / sidecars.FILE_NAME
    if not path.is_file():
        return
    name = f"{file.parent.name}/{path.name}"
    try:
        sidecar = sidecars.read(path)
        sidecars.check_model_file(file.parent, sidecar)
        yield Check(area, name, "OK", f"describes {sidecar.file}, whose SHA-256 it has")
    except sidecars.SidecarError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check(area, name, "FIX", found, remedy or "build the model again, or remove the sidecar")


def _loadable(area: str, model: Model, version: Path, file: Path) -> Check:
    """Whether the engine will take the file: a plan by its header and sidecar, an ONNX file by opening it."""
    name = f"{file.parent.name}/{file.name} here"
    try:
        if file.suffix != ".plan":
            spec = spec_of(Model(model.path, model.config, (version,)))
            return Check(area, name, "OK", "ONNX Runtime opens it" if spec else "not looked into")
        gpu, flavour = this_gpu(), load_flavour()
        sidecar = sidecars.read(version / sidecars.FILE_NAME) if (version / sidecars.FILE_NAME).is_file() else None
        files = [version / plan.file for plan in described_plans(file)] or [file]
        warnings = [text for plan in files if (text := check_plan(plan, flavour, gpu, sidecar))]
    except (PinstreamError, sidecars.SidecarError) as error:
        return _failed(area, name, error)
    if gpu is None:
        return Check(area, name, "FIX", f"a plan for {flavour}, and this machine has no GPU", "serve the .onnx instead")
    return Check(area, name, "WARN" if warnings else "OK", "; ".join(warnings) or f"fits {_here(gpu)}, {flavour}")


def _here(gpu: Gpu) -> str:
    return f"{gpu.name} ({gpu.compute_capability})"


def _failed(area: str, name: str, error: Exception) -> Check:
    found, _, remedy = str(error).rpartition("; ")
    kind = "put right what it says" if isinstance(error, ModelFileError) else f"correct {CONFIG}"
    return Check(area, name, "FIX", found or remedy, remedy if found else kind)


def _check_steps(area: str, model: Model, names: set[str]) -> Iterator[Check]:
    steps = model.config.ensemble_scheduling.step
    missing = [step.model_name for step in steps if step.model_name not in names]
    if missing:
        yield Check(area, "steps", "FIX", f"no model {', '.join(missing)} in the repository", "add it")
    elif steps:
        yield Check(area, "steps", "OK", " -> ".join(dict.fromkeys(step.model_name for step in steps)))
