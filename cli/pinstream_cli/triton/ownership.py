"""What is looked at before the start: for a warning, or for `--verify` and VERIFY to refuse it.

For those the backend looks again at all that it loads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.errors import ConfigError
from pinstream.options import verifies
from pinstream.verify import others_can_write, runs_unverified
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.model_versions import version_numbers
from pinstream_cli.triton.repository import (
    ENVIRONMENT,
    Configurations,
    Model,
    RepositoryError,
    model_directories,
    read_configuration,
    read_configurations,
)

# What runs a model of this backend; Triton itself says so of each in the configuration that it gives out.
OWN_RUNTIME = "model.py"
# Files, of 0.1 ms each.
MOST_LOOKED_AT = 10_000
# The parameter that names the library of a batching strategy.
BATCH_STRATEGY = "TRITON_BATCH_STRATEGY_PATH"


def check_owners(served: Path) -> None:
    """See that only root and this user can write what is served: models in Python are code, and nobody signs them.

    Args:
        served: A model repository, what `pinstream build` made, or a model file.

    Raises:
        CommandError: Somebody else can, or it cannot be looked at.
    """
    for place in (*_everything(served), *_environments(served)):
        _refuse("--verify is given", partial(others_can_write, place))


def written_by_others(served: Path) -> str:
    """Who else can write something of what is served, and what to do; empty for nobody.

    Args:
        served: A model repository, what `pinstream build` made, or a model file. Of one with very many files, as with
            an environment in it, only some are looked at: no start is to wait for that.
    """
    for place in itertools.islice(_everything(served), MOST_LOOKED_AT):
        with contextlib.suppress(OSError):  # nor is it to fail for a link that nobody reads
            if found := others_can_write(place):
                return found
    return ""


def check_vouched(repository: Path, model: Path) -> None:
    """See that a model has a sidecar that vouches for it.

    Args:
        repository: Where it was put.
        model: Where it came from, for the message.

    Raises:
        CommandError: It is a file by itself.
    """
    if not any(repository.glob(f"*/1/{sidecars.FILE_NAME}")):
        raise CommandError(
            f"--verify loads only what a {sidecars.FILE_NAME} has the SHA-256 of, and {model} is a file by itself; "
            "name the directory that `pinstream build --plan` made of it, or serve it without --verify"
        )


def check_code(repository: Path, *, verify: bool) -> None:
    """See that nothing in a verified model's directories runs before the backend can verify it.

    Args:
        repository: A model repository.
        verify: Whether all of its models are to be verified; else those are whose own settings ask for it.

    Raises:
        CommandError: Something does, or it cannot be looked at.
    """
    for model in model_directories(repository):
        configurations = read_configurations(model)
        for file, reason in configurations.unreadable.items():
            if why := "--verify is given" if verify else _may_ask(file):
                raise CommandError(
                    f"{why}, and of {model} {reason}; correct it, or take the model out: Triton may read in it what is "
                    "to be run"
                )
        if _ours(configurations) if verify else asks_to_verify(configurations):
            _refuse("--verify is given" if verify else "VERIFY is set", partial(unverified_code, configurations))


def _refuse(why: str, look: Callable[[], str]) -> None:
    """Look, and refuse to start for what there is, or where it cannot be looked at."""
    try:
        found = look()
    except OSError as error:
        raise CommandError(f"{why}, and {error.filename} cannot be looked at: {error.strerror}") from None
    if found:
        raise CommandError(f"{why}, and {found}")


def asks_to_verify(configurations: Configurations) -> bool:
    """Whether VERIFY is set for a model of this backend, by any of its configurations or in the environment."""
    return any(map(_asks_to_verify, _ours(configurations)))


def _ours(configurations: Configurations) -> list[Model]:
    """A model with each of its configurations that are for this backend."""
    return [model for model in configurations.models.values() if _backend(model).rpartition("/")[2] == "pinstream"]


def _backend(model: Model) -> str:
    """What runs a model; where nothing says so, Triton goes by the model's name behind the first dot."""
    return model.config.backend or model.name.partition(".")[2]


def _may_ask(file: Path) -> str:
    """Whether VERIFY is set, or may be, in a configuration that cannot be read; empty where it is not."""
    try:
        return "VERIFY is set" if verifies({}) or b"VERIFY" in read_configuration(file.parent, file.name) else ""
    except (ConfigError, OSError, RepositoryError):
        return "VERIFY may be set"


def _asks_to_verify(model: Model) -> bool:
    try:
        return verifies(model.as_json())
    except ConfigError:
        # The backend refuses it when it is loaded. What Triton runs before that would have run.
        return True


def unverified_code(configurations: Configurations) -> str:
    """Which code Triton runs unverified for a model of this backend, and what to do; empty for none.

    Raises:
        OSError: A directory of the model cannot be looked at.
    """
    named = (_named_code(file, model) for file, model in configurations.models.items())
    path = configurations.path
    # Later loads may take versions that are left out now, or come then.
    return next(filter(None, named), "") or runs_unverified(path, *(path / name for name in version_numbers(path)))


def _named_code(file: Path, model: Model) -> str:
    """Which code a model's configuration names that Triton runs, wherever it lies, and what to do; empty for none."""
    if (runtime := model.config.runtime) not in ("", OWN_RUNTIME):
        found = f'{file} has runtime: "{runtime}", which Triton runs in place of this backend'
    elif BATCH_STRATEGY in model.config.parameters:
        library = model.config.parameters[BATCH_STRATEGY].string_value
        found = f'{file} has the parameter {BATCH_STRATEGY}: "{library}", which Triton runs beside this backend'
    elif "/" in (backend := model.config.backend):
        found = f'{file} has backend: "{backend}", which leads out of Triton\'s own, and which Triton runs first'
    elif agent := next((a.name for a in model.config.model_repository_agents.agents if "/" in a.name), ""):
        found = (
            f'{file} has the repository agent "{agent}", which leads out of Triton\'s own, and which Triton runs first'
        )
    elif model.environment is not None and _lies_with(model, model.environment):
        found = f'{file} has {ENVIRONMENT}: "{model.environment}", in the repository, which Triton runs first'
    else:
        return ""
    return f"{found}, unverified; leave it out"


def _lies_with(model: Model, environment: Path) -> bool:
    """Whether an environment comes with what is served, by its name or where links lead; else it is the machine's."""
    places = {Path(os.path.abspath(environment)), Path(os.path.realpath(environment))}
    homes = {home for path in (model.path, model.path.parent) for home in (path.absolute(), path.resolve())}
    return any(place.is_relative_to(home) for place in places for home in homes)


def _environments(served: Path) -> Iterator[Path]:
    """The environments that models of a repository name, wherever these lie: their bin/activate is run first of all."""
    for directory in model_directories(served) if served.is_dir() else ():
        for model in read_configurations(directory).models.values():
            if model.environment is not None:
                yield from _everything(model.environment)


def _everything(served: Path) -> Iterator[Path]:
    """What is served, with all that lies in it; for a file, with the sidecar beside it."""
    yield served
    if not served.is_dir():
        sidecar = served.with_name(sidecars.FILE_NAME)
        if sidecar.exists():
            yield sidecar
        return
    seen = set()
    for directory, directories, files in os.walk(served, followlinks=True):
        # A link may lead back to where it lies.
        real = os.path.realpath(directory)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        yield from (Path(directory, name) for name in (*directories, *files))
