"""Configurations of models that are measured: without limits on what waits, and without inputs that are optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pinstream.errors import PinstreamError
from pinstream.references import SUFFIX
from pinstream_cli.triton.repository import CONFIG, Model, read_model, write_model
from pinstream_cli.triton.sizing import READ_WITHIN

REFERENCES = "BY_REFERENCE"


def lift_limits(repository: Path) -> None:
    """Let everything wait in `repository`, which must be a copy: where more is sent than is served, to measure that.

    Raises:
        RepositoryError: A configuration cannot be read.
    """
    for model in _models(repository):
        if model.config.HasField("dynamic_batching"):
            model.config.dynamic_batching.ClearField("default_queue_policy")
            # Left out it is as long as can be.
            model.config.parameters.pop(READ_WITHIN, None)
            write_model(model)


def take_tensors(repository: Path) -> None:
    """Have all in `repository`, which must be a copy, take and hand on tensors, and no references to them.

    One of two inputs of which a request brings one is optional, and perf_analyzer shares no memory with a model that
    has an optional input.

    Raises:
        RepositoryError: A configuration cannot be read.
    """
    models = _models(repository)
    instead: dict[str, str] = {}
    for model in models:
        if names := _by_reference(model):
            del model.config.parameters[REFERENCES]
            _require(model.config, names)
            instead |= {name + SUFFIX: name for name in names}
    for model in models:
        for step in model.config.ensemble_scheduling.step:
            for tensors in (step.input_map, step.output_map):
                for name in tensors.keys() & instead.keys():
                    tensors[instead[name]] = tensors.pop(name)
        write_model(model)


def _by_reference(model: Model) -> Sequence[str]:
    try:
        return model.options.by_reference
    except PinstreamError:  # another backend's parameters; or a wrong one, which the server tells
        return ()


def _require(config: Any, names: Sequence[str]) -> None:
    """Make each of these inputs the only one of its two."""
    inputs = [tensor for tensor in config.input if tensor.name not in [name + SUFFIX for name in names]]
    for tensor in inputs:
        tensor.optional = tensor.optional and tensor.name not in names
    del config.input[:]
    config.input.extend(inputs)


def _models(repository: Path) -> list[Model]:
    return [read_model(file.parent) for file in sorted(repository.glob(f"*/{CONFIG}"))]
