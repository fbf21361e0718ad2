"""What a model is compared with: other ways of serving it, as model directories for the same tritonserver.

Those in the checkout's benchmarks/peers take the measured model's inputs and give its outputs, so their configurations
leave them out and are completed here. Any other model directory is served as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pinstream.tensors import ModelSpec, TensorSpec
from pinstream_cli.benchmark.environment import ROOT
from pinstream_cli.errors import CommandError

DIRECTORY = ROOT / "benchmarks" / "peers"
# What every model can be compared with, by the kind of its file.
ALWAYS = {".onnx": ("empty", "onnxruntime"), ".plan": ("empty",)}


def place(names: Sequence[str], repository: Path, file: Path, spec: ModelSpec) -> list[str]:
    """Put peers into a model repository.

    Args:
        names: Directories in benchmarks/peers, or paths of model directories.
        repository: Where to; made if it is not there.
        file: The measured model's.
        spec: The measured model.

    Returns:
        The peers' names on the server.

    Raises:
        CommandError: There is no such peer.
    """
    repository.mkdir(parents=True, exist_ok=True)
    return [_place(name, repository, file, spec) for name in names]


def _place(name: str, repository: Path, file: Path, spec: ModelSpec) -> str:
    source = DIRECTORY / name if "/" not in name else Path(name)
    if not (source / "config.pbtxt").is_file():
        known = ", ".join(sorted(path.parent.name for path in DIRECTORY.glob("*/config.pbtxt")))
        raise CommandError(
            f"--peer {name} is neither a model directory nor one of the checkout's benchmarks/peers ({known or 'none'})"
        )
    try:
        config = text_format.Parse((source / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, ValueError) as error:  # the latter for an enum's number of no 32 bits
        raise CommandError(f"--peer {name}: {source / 'config.pbtxt'} is no model configuration: {error}") from None
    target = repository / source.name
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"), copy_function=_link)
    if not config.input:
        _complete(config, spec)
    for key, value in {"MODEL_FILE": str(file.resolve()), "CHECKOUT": str(ROOT)}.items():
        if key in config.parameters:
            config.parameters[key].string_value = value
    (target / "config.pbtxt").unlink()
    (target / "config.pbtxt").write_text(text_format.MessageToString(config))
    return source.name


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _complete(config: Any, spec: ModelSpec) -> None:
    if spec.batch is not None and not config.max_batch_size:
        config.max_batch_size = spec.batch.largest
    for tensors, entries in ((spec.inputs, config.input), (spec.outputs, config.output)):
        for tensor in tensors:
            dtype = "STRING" if tensor.dtype == "BYTES" else tensor.dtype
            entries.add(name=tensor.name, data_type=f"TYPE_{dtype}", dims=tensor.shape or (1,))


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """What a model takes and gives by the server's configuration of it; without batch sizes."""

    def tensors(entries: Sequence[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                entry["name"],
                str(entry["data_type"]).removeprefix("TYPE_").replace("STRING", "BYTES"),
                tuple(int(dim) for dim in entry["dims"]),
            )
            for entry in entries
        )

    return ModelSpec(tensors(config["input"]), tensors(config["output"]), None)
