"""A model repository, held file by file against what Triton and our backend will do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pinstream_cli.doctor.backends import ENSEMBLE, OURS, PYTHON, Triton, backend_of, check_backend
from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.config import Subject, check_config, leading_nowhere
from pinstream_cli.doctor.ensembles import Known, check_ensemble
from pinstream_cli.doctor.model_files import check_files, permissions, readable
from pinstream_cli.doctor.signature import signature_of
from pinstream_cli.doctor.steps import check_python
from pinstream_cli.doctor.warmup import check_warmup
from pinstream_cli.triton.repository import CONFIG, Model, RepositoryError, model_directories, read_model

# The parameter of Triton's Python backend that names an environment, and what stands there for the model's directory.
ENVIRONMENT, MODEL_DIRECTORY = "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY"


def check_repository(repository: Path, triton: Triton | None, gpus: int) -> Iterator[Check]:
    """Every model of a repository.

    Args:
        repository: The directory that --model-repository names.
        triton: The Triton that is to serve it; None leaves unjudged what depends on which it is.
        gpus: GPUs of this machine.
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
    for path in leading_nowhere(repository):
        yield Check(area, path.name, "FIX", "leads nowhere, which Triton does not start with", f"rm {path}")
    models: dict[str, Known] = {}
    for directory in directories:
        try:
            model = read_model(directory)
        except RepositoryError as error:
            found, _, remedy = str(error).partition("; ")
            yield Check(f"model {directory.name}", CONFIG, "FIX", found, remedy or f"correct {directory / CONFIG}")
            continue
        models[model.name] = Known(model, signature_of(model))
    for known in models.values():
        yield from _check_model(known, models, triton, gpus)


def _check_model(known: Known, models: Mapping[str, Known], triton: Triton | None, gpus: int) -> Iterator[Check]:
    model = known.model
    area = f"model {model.name}"
    yield _config(area, model)
    yield from check_backend(area, model, triton)
    yield from check_config(area, Subject(model, known.signature, gpus))
    for version in model.versions:
        yield from _check_version(area, model, version)
    for version in model.left_out:
        for check in _check_version(area, model, version):
            # Nothing that keeps Triton from starting; whoever goes back to it wants to know.
            passed_over = replace(check, status="WARN", found=f"{check.found} (version_policy leaves it out)")
            yield passed_over if check.status == "FIX" else check
    yield from _named_files(area, model)
    if backend_of(model.config) == ENSEMBLE:
        yield from check_ensemble(area, model, models)
    else:
        yield from check_warmup(area, model, known.signature)


def _config(area: str, model: Model) -> Check:
    if not (model.path / CONFIG).exists():
        return Check(area, CONFIG, "WARN", f"there is no {CONFIG}", f'write one, in it: backend: "{OURS}"')
    return Check(area, CONFIG, "OK", f"max_batch_size {model.config.max_batch_size or 'left to the engine'}")


def _check_version(area: str, model: Model, version: Path) -> Iterator[Check]:
    backend = backend_of(model.config)
    if backend == PYTHON:
        yield from check_python(area, model, version)
    elif backend == OURS:
        yield from check_files(area, model, version)
    else:
        yield permissions(area, version, [])


def _named_files(area: str, model: Model) -> Iterator[Check]:
    """Files that a configuration names, and without which Triton does not load the model."""
    for name in dict.fromkeys(tensor.label_filename for tensor in model.config.output if tensor.label_filename):
        yield readable(area, model.path / name, may_be_empty=True)
    environment = model.config.parameters[ENVIRONMENT].string_value if ENVIRONMENT in model.config.parameters else ""
    if environment and not Path(environment.replace(MODEL_DIRECTORY, str(model.path))).exists():
        yield Check(
            area, ENVIRONMENT, "FIX", f"{environment} is not there", f"put it there, or leave {ENVIRONMENT} out"
        )
