"""The model that is tuned: where its files and its configuration are, and a repository to try it in."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pinstream import sidecar as sidecars
from pinstream_cli.benchmark.target import Source, locate
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.assemble import link_or_copy, service_repository
from pinstream_cli.triton.measured import lift_limits, take_tensors
from pinstream_cli.triton.sizing import DETECTOR, plain_config, size_service

CONFIG = "config.pbtxt"
ONE_LINE = 'backend: "pinstream"\n'


@dataclass(frozen=True)
class Tuned:
    """A model to be tuned.

    Attributes:
        name: On the server.
        version: Directory with the model's files.
        config: As it is now, or as `pinstream serve` would make it; a ModelConfig message.
        file: Its config.pbtxt; None where it has none yet.
    """

    name: str
    version: Path
    config: Any
    file: Path | None


def find(model: Path, name: str | None, scratch: Path) -> Tuned:
    """Find out what `model` is.

    Args:
        model: A model's directory in a repository, or what `pinstream serve --model` takes.
        name: Of the model, where it is not that of the directory.
        scratch: Where a YOLOX export is built.

    Raises:
        CommandError: It is neither.
    """
    if (model / CONFIG).is_file():
        version, found = locate(Source(None, model.resolve().name, model.resolve().parent), scratch)
        config = _parse((model / CONFIG).read_text(), model / CONFIG)
        if config.backend != "pinstream":
            raise CommandError(f"{model / CONFIG} has backend {config.backend or 'none'}; only pinstream's are tuned")
        return Tuned(found, version, config, model / CONFIG)
    if model.is_dir():
        _check_directory(model, name)
    version, found = locate(Source(model, name), scratch)
    text = _as_served(version, found == DETECTOR and name is None, scratch / "service")
    return Tuned(found, version, _parse(text, model), None)


def _check_directory(directory: Path, name: str | None) -> None:
    """See that it is what `pinstream build` made, or has a model that is named.

    Raises:
        CommandError: It is a repository, or nothing of the kind.
    """
    if (directory / sidecars.FILE_NAME).is_file() or (name is not None and any(directory.glob("model.*"))):
        return
    found = f"{directory} has no {CONFIG}, as a model's directory has, and no {sidecars.FILE_NAME} of `pinstream build`"
    models = sorted(file.parent for file in directory.glob(f"*/{CONFIG}"))
    if models:
        raise CommandError(f"{found}; it is a model repository: name a model in it, as in pinstream tune {models[0]}")
    raise CommandError(f"{found}; name a model's directory, what `pinstream build` made, or an ONNX file")


def _as_served(version: Path, service: bool, scratch: Path) -> str:
    """The configuration that `pinstream serve --model` makes for a model, or for the detector of the YOLOX service."""
    is_plan = any(version.glob("*.plan"))
    if service:
        shutil.copytree(service_repository(), scratch)
        size_service(scratch, gpu=is_plan)
        return (scratch / DETECTOR / CONFIG).read_text()
    return ONE_LINE if is_plan else plain_config()


def place(tuned: Tuned, repository: Path) -> Tuned:
    """Put the model into a repository of its own.

    Returns:
        The model as it is to be measured: without the limits on queues that `pinstream serve` sets, so that whatever is
        sent waits. Limits that somebody wrote stay. It takes tensors and no references to them (BY_REFERENCE).
    """
    version = repository / tuned.name / "1"
    version.mkdir(parents=True)
    config = version.parent / CONFIG
    config.write_text(text_format.MessageToString(tuned.config))
    for file in tuned.version.iterdir():
        if file.is_file():
            link_or_copy(file, version / file.name)
    take_tensors(repository)
    if tuned.file is None:
        lift_limits(repository)
    return replace(tuned, config=_parse(config.read_text(), config))


def how_to_serve(tuned: Tuned, file: Path) -> str:
    """What is left to do with a configuration that was written for a model of no repository."""
    of_service = "a copy of the YOLOX service's repository (docs/configuration.md)"
    models = of_service if tuned.name == DETECTOR else "a model repository"
    return (
        f"`pinstream serve --model` makes a configuration of its own. To serve this one, put {file} into {models} as "
        f"{tuned.name}/{CONFIG}, the model's files into {tuned.name}/1, and name that repository: "
        "pinstream serve --model-repository"
    )


def write(config: Any, comment: str, file: Path) -> Path | None:
    """Write a configuration, each line of `comment` marked as such above it, in one step.

    Returns:
        Where the file that was there is kept, since its own comments are not in the new one; None where there was none.

    Raises:
        CommandError: The file cannot be written; it is as it was.
    """
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    file = file.resolve()
    written = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(lines + text_format.MessageToString(config))
        kept = _keep(file)
        if kept is not None:
            shutil.copymode(kept, written)
        os.replace(written, file)
    except OSError as error:
        written.unlink(missing_ok=True)
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None
    return kept


def _keep(file: Path) -> Path | None:
    """Copy what is there beside it; what an earlier run kept stays."""
    if not file.exists():
        return None
    endings = itertools.chain(("before",), (f"before-{number}" for number in itertools.count(2)))
    kept = next(path for end in endings if not (path := file.with_name(f"{file.name}.{end}")).exists())
    shutil.copy2(file, kept)
    return kept


def _parse(text: str, where: Path) -> Any:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (text_format.ParseError, ValueError) as error:  # the latter for an enum's number of no 32 bits
        raise CommandError(f"{where} is no model configuration: {error}") from None
