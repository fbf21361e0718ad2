"""Configurations of models that are measured: without limits on what waits, and without inputs that are optional."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream.references import SUFFIX
from pinstream_cli.triton.sizing import READ_WITHIN

REFERENCES = "BY_REFERENCE"


def lift_limits(repository: Path) -> None:
    """Let everything wait in `repository`, which must be a copy: where more is sent than is served, to measure that."""
    for file in _configurations(repository):
        with _changed(file) as config:
            if config.HasField("dynamic_batching"):
                config.dynamic_batching.ClearField("default_queue_policy")
                # Left out it is as long as can be.
                config.parameters.pop(READ_WITHIN, None)


def take_tensors(repository: Path) -> None:
    """Have all in `repository`, which must be a copy, take and hand on tensors, and no references to them.

    One of two inputs of which a request brings one is optional, and perf_analyzer shares no memory with a model that
    has an optional input.
    """
    instead: dict[str, str] = {}
    for file in _configurations(repository):
        with _changed(file) as config:
            names = config.parameters.pop(REFERENCES, None)
            for name in names.string_value.split(";") if names else ():
                instead[name.strip() + SUFFIX] = name.strip()
                _require(config, name.strip())
    for file in _configurations(repository):
        with _changed(file) as config:
            for step in config.ensemble_scheduling.step:
                for tensors in (step.input_map, step.output_map):
                    for name in tensors.keys() & instead.keys():
                        tensors[instead[name]] = tensors.pop(name)


def _require(config: Any, name: str) -> None:
    """Make an input the only one of its two."""
    inputs = [tensor for tensor in config.input if tensor.name != name + SUFFIX]
    for tensor in inputs:
        tensor.optional = tensor.optional and tensor.name != name
    del config.input[:]
    config.input.extend(inputs)


def _configurations(repository: Path) -> list[Path]:
    return sorted(repository.glob("*/config.pbtxt"))


@contextmanager
def _changed(file: Path) -> Iterator[Any]:
    """A configuration, to be written as it is afterwards where that is another."""
    before = text_format.Parse(file.read_text(), ModelConfig())
    config = ModelConfig()
    config.CopyFrom(before)
    yield config
    if config != before:
        file.write_text(text_format.MessageToString(config))
