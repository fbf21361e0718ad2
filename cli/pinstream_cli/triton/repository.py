"""A model repository as Triton reads it: its models, their configurations, their version directories."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from pinstream.engines import find_model_file
from pinstream.engines.plan_source import described_plans
from pinstream.engines.profiles import model_spec as plan_spec
from pinstream.options import Options
from pinstream.regular import MOST_BYTES, read_small
from pinstream.tensors import ModelSpec
from pinstream_cli.triton.model_versions import chosen, version_numbers

# What an ONNX file takes and gives.
ReadOnnx = Callable[[Path, Options], ModelSpec]

CONFIG = "config.pbtxt"
# Where the configurations lie that `--model-config-name` chooses from.
CONFIGS = "configs"
# The parameter that names another environment than this one, and what may stand there for the model's directory.
ENVIRONMENT, _MODEL_DIRECTORY = "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY"
# What Triton runs with its Python backend.
PYTHON_BACKENDS = ("python", "pinstream")


class RepositoryError(ValueError):
    """A model directory that Triton will not take as it is; the text says what is wrong in it."""


@dataclass(frozen=True)
class Model:
    """A model directory.

    Attributes:
        path: `<repository>/<model>`.
        config: Its config.pbtxt; empty where there is none, as to Triton.
        numbers: Its directories that Triton takes for versions, by name, and the number that it reads in each name.
    """

    path: Path
    config: model_config_pb2.ModelConfig
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def chosen(self) -> list[int]:
        """The versions that its version policy takes, oldest first."""
        policy = self.config.version_policy if self.config.HasField("version_policy") else None
        return chosen(policy, self.numbers.values())

    @property
    def versions(self) -> tuple[Path, ...]:
        """The version directories that Triton loads, oldest first."""
        return tuple(path for path in self._directories(self.chosen) if path.is_dir())

    @property
    def left_out(self) -> tuple[Path, ...]:
        """The version directories that its version policy does not take, oldest first."""
        taken = set(self.chosen)
        return tuple(
            self._directories(
                number for name, number in self.numbers.items() if str(number) == name and number not in taken
            )
        )

    def _directories(self, numbers: Iterable[int]) -> Iterator[Path]:
        return (self.path / str(number) for number in sorted(numbers))

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

    @property
    def environment(self) -> Path | None:
        """The directory or archive whose bin/activate Triton's Python backend runs before the model; None for none."""
        named = self.config.parameters[ENVIRONMENT].string_value if ENVIRONMENT in self.config.parameters else ""
        return Path(named.replace(_MODEL_DIRECTORY, str(self.path))) if named else None

    def as_json(self) -> Mapping[str, Any]:
        """Its configuration as Triton hands it to a Python backend."""
        config: dict[str, Any] = json_format.MessageToDict(self.config, preserving_proto_field_name=True)
        for tensor in (*config.get("input", ()), *config.get("output", ())):
            # Protobuf leaves out what is not set, Triton does not.
            tensor.update({"name": "", "data_type": "TYPE_INVALID", "dims": [], **tensor})
        return config


@dataclass(frozen=True)
class Configurations:
    """Every configuration of a model that Triton can be told to read, by `--model-config-name` too.

    Attributes:
        path: The model's directory, `<repository>/<model>`.
        models: The model with each of them, by their files.
        unreadable: Why the others cannot be read, by their files. Triton may read them all the same: it has another
            reader, of another version.
    """

    path: Path
    models: Mapping[Path, Model]
    unreadable: Mapping[Path, str]


def model_directories(repository: Path) -> list[Path]:
    """What Triton takes for models: every directory, hidden ones too."""
    return sorted(path for path in repository.iterdir() if path.is_dir())


def read_configurations(path: Path) -> Configurations:
    """Read every configuration of a model.

    Args:
        path: `<repository>/<model>`.
    """
    models, unreadable = {}, {}
    for name in (CONFIG, *sorted(f"{CONFIGS}/{file.name}" for file in (path / CONFIGS).glob("*.pbtxt"))):
        try:
            models[path / name] = read_model(path, name)
        except RepositoryError as error:
            unreadable[path / name] = str(error)
    return Configurations(path, models, unreadable)


def read_model(path: Path, name: str = CONFIG) -> Model:
    """Read one model directory.

    Args:
        path: `<repository>/<model>`.
        name: Of its configuration, in that directory.

    Raises:
        RepositoryError: Its configuration cannot be read.
    """
    try:
        # A carriage return ends no line to Triton, nor a comment.
        text = read_configuration(path, name).decode(errors="replace")
        numbers = version_numbers(path)
    except OSError as error:
        raise RepositoryError(f"{error.filename} cannot be read: {error.strerror}; let this user read it") from None
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{name} cannot be parsed, line and column {error}") from None
    except ValueError as error:  # an enum's number that fits into no 32 bits
        raise RepositoryError(f"{name} cannot be parsed: {error}") from None
    return Model(path, config, numbers)


def write_model(model: Model) -> None:
    """Write a model's configuration into its directory, without the comments that it had."""
    (model.path / CONFIG).write_text(text_format.MessageToString(model.config))


def read_configuration(path: Path, name: str) -> bytes:
    """The content of a model's configuration; empty where there is none, as to Triton.

    Args:
        path: `<repository>/<model>`.
        name: Of the configuration, in that directory.

    Raises:
        RepositoryError: It is no regular file, or larger than any configuration.
        OSError: It cannot be read.
    """
    file = path / name
    if not file.exists():
        return b""
    if not file.is_file():
        raise RepositoryError(f"{name} is no regular file; put a file there")
    if (content := read_small(file)) is None:
        raise RepositoryError(
            f"{name} is larger than {MOST_BYTES >> 20} MiB, and no configuration is; write it again, or remove it"
        )
    return content


def breaks_shell(model: Model) -> bool:
    """Whether a model's path is one that Triton's Python backend, which gives it to a shell, trips over."""
    return is_read_by_shell(model.path) and _runs_in_python(model)


def may_break_shell(configurations: Configurations) -> bool:
    """Whether that is so by any configuration that Triton may be told to read, or by one that only Triton can read."""
    models = configurations.models.values()
    return is_read_by_shell(configurations.path) and (bool(configurations.unreadable) or any(map(breaks_shell, models)))


def _runs_in_python(model: Model) -> bool:
    """Whether Triton runs a model with its Python backend: where nothing says so, its name or a model.py does."""
    if model.config.backend or model.config.platform:
        return model.config.backend in PYTHON_BACKENDS
    by_name = model.name.partition(".")[2] in PYTHON_BACKENDS
    return by_name or any((version / "model.py").exists() for version in model.versions)


def is_read_by_shell(path: Path) -> bool:
    """Whether there is something in a path that a shell does not take as it stands.

    Triton's Python backend 2.51 gives its paths to one unquoted. It then waits for good, or does what stands there.
    """
    return shlex.quote(str(path)) != str(path)


def read_onnx_here(file: Path, options: Options) -> ModelSpec:
    """What an ONNX file takes and gives; see `read_spec`."""
    from pinstream.engines.onnxruntime import read_spec

    return read_spec(file, options)


def spec_of(model: Model, read_onnx: ReadOnnx = read_onnx_here) -> ModelSpec | None:
    """What the newest version of a model of our backend takes and gives; None where only loading it would tell.

    Args:
        model: The model.
        read_onnx: What ONNX files take and give; else this process opens them.

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
    return read_onnx(file, options)


def dtype_of(message: Any) -> str:
    """The name of a message's data_type, as config.pbtxt writes it; its number where it is none that there is."""
    values = message.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return str(values[message.data_type].name) if message.data_type in values else str(message.data_type)
