"""A model repository as Triton reads it: its models, their configurations, their version directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from pinstream.engines import find_model_file
from pinstream.engines.plan_source import described_plans
from pinstream.engines.profiles import model_spec as plan_spec
from pinstream.options import Options
from pinstream.tensors import ModelSpec

CONFIG = "config.pbtxt"


class RepositoryError(ValueError):
    """A model directory that Triton will not take as it is; the text says what is wrong in it."""


@dataclass(frozen=True)
class Model:
    """A model directory.

    Attributes:
        path: `<repository>/<model>`.
        config: Its config.pbtxt.
        versions: Its version directories, oldest first.
    """

    path: Path
    config: model_config_pb2.ModelConfig
    versions: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The model's name, which is its directory's."""
        return self.path.name

    @property
    def options(self) -> Options:
        """Its settings as our backend reads them.

        Raises:
            ConfigError: A parameter is unknown or out of range.
        """
        return Options.from_model_config(self.as_json())

    def as_json(self) -> Mapping[str, Any]:
        """Its configuration as Triton hands it to a Python backend."""
        config: dict[str, Any] = json_format.MessageToDict(self.config, preserving_proto_field_name=True)
        for tensor in (*config.get("input", ()), *config.get("output", ())):
            # Protobuf leaves out what is not set, Triton does not.
            tensor.update({"name": "", "data_type": "TYPE_INVALID", "dims": [], **tensor})
        return config


def model_directories(repository: Path) -> list[Path]:
    """What Triton takes for models: every directory that is not hidden."""
    return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_model(path: Path) -> Model:
    """Read one model directory.

    Raises:
        RepositoryError: It has no config.pbtxt, or one that cannot be read.
    """
    file = path / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RepositoryError(f'there is no {CONFIG}; write one, in it: backend: "pinstream"') from None
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{CONFIG} cannot be read: {error}") from None
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{CONFIG} cannot be parsed, line and column {error}") from None
    versions = sorted((p for p in path.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))
    return Model(path, config, tuple(versions))


def spec_of(model: Model) -> ModelSpec | None:
    """What the newest version of a model of our backend takes and gives; None where only loading it would tell.

    Raises:
        PinstreamError: Its options, its sidecar or its file are wrong.
    """
    if model.config.backend != "pinstream" or not model.versions:
        return None
    options = model.options
    file = find_model_file(model.versions[-1], options)
    plans = described_plans(file)
    if plans:
        return plan_spec(plans, options)
    if file.suffix != ".onnx":
        return None
    from pinstream.engines.onnxruntime import read_spec

    return read_spec(file, options)
