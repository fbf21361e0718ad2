"""Model repositories, held file by file against what Triton and our backend will do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pinstream_cli.doctor.backends import ENSEMBLE, OURS, PYTHON, Triton, backend_of, check_backend
from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.config import Subject, check_config, leading_nowhere
from pinstream_cli.doctor.ensembles import Known, check_decoupled, check_ensemble
from pinstream_cli.doctor.model_files import check_files, check_overrides, permissions, readable
from pinstream_cli.doctor.python_backend import check_python_backend
from pinstream_cli.doctor.queues import check_queues
from pinstream_cli.doctor.signature import signature_of
from pinstream_cli.doctor.steps import check_python
from pinstream_cli.doctor.warmup import check_warmup
from pinstream_cli.triton.repository import CONFIG, Model, ReadOnnx, RepositoryError, model_directories, read_model

T = TypeVar("T")


def check_repositories(
    repositories: Sequence[Path], triton: Triton | None, gpus: int, read_onnx: ReadOnnx
) -> Iterator[Check]:
    """Every model of some repositories, which make one to Triton.

    Args:
        repositories: The directories that --model-repository names, each once and without links.
        triton: The Triton that is to serve them; None leaves unjudged what depends on which it is.
        gpus: GPUs of this machine.
        read_onnx: What ONNX files take and give.
    """
    models: dict[str, Known] = {}
    for repository in repositories:
        for found in _readable(f"repository {repository}", _read(repository)):
            if isinstance(found, Check):
                yield found
            elif found.name in models:
                there = f"{found.name} is in {models[found.name].model.path.parent} too, and Triton takes neither"
                yield Check(f"repository {repository}", "models", "FIX", there, "rename one of them")
            else:
                models[found.name] = Known(found, signature_of(found, read_onnx))
    for known in models.values():
        yield from _readable(f"model {known.model.name}", _check_model(known, models, triton, gpus, read_onnx))


def _readable(area: str, results: Iterator[T]) -> Iterator[T | Check]:
    """What comes of looking at files, to where they cannot be looked at."""
    try:
        yield from results
    except OSError as error:
        found = f"{error.filename} cannot be looked at: {error.strerror}"
        yield Check(area, "files", "FIX", found, "let this user read it and pass through its directories")


def _read(repository: Path) -> Iterator[Model | Check]:
    """The models of one repository, and what is wrong with it as a whole."""
    area = f"repository {repository}"
    if not repository.is_dir():
        yield Check(area, "directory", "FIX", "is not there", "name a directory with --model-repository")
        return
    if (repository / CONFIG).exists():
        yield Check(area, CONFIG, "FIX", "lies in the repository itself", f"name its parent, {repository.parent}")
        return
    directories = model_directories(repository)
    if not directories:
        yield Check(
            area, "models", "FIX", "none", f"put one there: {repository}/NAME/{CONFIG} and {repository}/NAME/1/"
        )
    for path in leading_nowhere(repository):
        yield Check(area, path.name, "FIX", "leads nowhere, which Triton does not start with", f"rm {path}")
    for directory in directories:
        yield _read_model(directory)


def _read_model(directory: Path) -> Model | Check:
    area = f"model {directory.name}"
    try:
        model = read_model(directory)
    except RepositoryError as error:
        found, _, remedy = str(error).partition("; ")
        return Check(area, CONFIG, "FIX", found, remedy or f"correct {directory / CONFIG}")
    if not (directory / CONFIG).exists() and not model.numbers:
        found = f"there is no {CONFIG} and no version, and Triton takes every directory for a model"
        return Check(area, CONFIG, "FIX", found, f'move it away, or write one, in it: backend: "{OURS}"')
    return model


def _check_model(
    known: Known, models: Mapping[str, Known], triton: Triton | None, gpus: int, read_onnx: ReadOnnx
) -> Iterator[Check]:
    model = known.model
    area = f"model {model.name}"
    yield _config(area, model)
    yield from check_backend(area, model, triton)
    if backend_of(model.config) == OURS:
        yield from check_overrides(area, model)
    yield from check_config(area, Subject(model, known.signature, gpus))
    yield from check_decoupled(area, model, models)
    yield from check_queues(area, model, gpus)
    for version in model.versions:
        yield from _check_version(area, model, version, read_onnx)
    for version in model.left_out:
        for check in _check_version(area, model, version, read_onnx):
            # Nothing that keeps Triton from starting; whoever goes back to it wants to know.
            passed_over = replace(check, status="WARN", found=f"{check.found} (version_policy leaves it out)")
            yield passed_over if check.status == "FIX" else check
    yield from _named_files(area, model)
    if backend_of(model.config) in (OURS, PYTHON):
        yield from check_python_backend(area, model)
    if backend_of(model.config) == ENSEMBLE:
        yield from check_ensemble(area, model, models)
    else:
        yield from check_warmup(area, model, known.signature)


def _config(area: str, model: Model) -> Check:
    if not (model.path / CONFIG).exists():
        return Check(area, CONFIG, "WARN", f"there is no {CONFIG}", f'write one, in it: backend: "{OURS}"')
    return Check(area, CONFIG, "OK", f"max_batch_size {model.config.max_batch_size or 'left to the engine'}")


def _check_version(area: str, model: Model, version: Path, read_onnx: ReadOnnx) -> Iterator[Check]:
    backend = backend_of(model.config)
    if backend == PYTHON:
        yield from check_python(area, model, version)
    elif backend == OURS:
        yield from check_files(area, model, version, read_onnx)
    else:
        yield permissions(area, version, [])


def _named_files(area: str, model: Model) -> Iterator[Check]:
    """Files that a configuration names, and without which Triton does not load the model."""
    for name in dict.fromkeys(tensor.label_filename for tensor in model.config.output if tensor.label_filename):
        # Triton begins at the model's directory, whatever a name begins with.
        yield readable(area, model.path / name.lstrip("/"), may_be_empty=True)
