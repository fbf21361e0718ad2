"""How many items a request may have, told before a server is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream.autocomplete import max_batch_size
from pinstream.engines import find_model_file, inspect
from pinstream.engines.plan_source import described_plans
from pinstream.errors import PinstreamError
from pinstream.options import Options
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.repository import Model


def check_batches(name: str, config: ModelConfig, model_dir: Path, batches: Sequence[int]) -> None:
    """See that a model takes requests of so many items; nothing is said of one that takes no batches.

    Args:
        name: Of the model.
        config: Of the model.
        model_dir: With its files.
        batches: Items of requests.

    Raises:
        CommandError: It does not.
    """
    largest = _largest(config, model_dir)
    if largest and batches and max(batches) > largest:
        raise CommandError(
            f"--batch {max(batches)}: {name} takes {largest} items a request at most; ask for no more, or set "
            "max_batch_size in a config.pbtxt of its own"
        )


def left_out(batches: Sequence[int], largest: int, name: str) -> list[str]:
    """What is said of requests that a model does not take; nothing where it takes them all, or no batches."""
    larger = ", ".join(str(batch) for batch in batches if batch > largest)
    return [f"Requests of {larger} are left out: {name} takes {largest} items at most."] if larger and largest else []


def _largest(config: ModelConfig, model_dir: Path) -> int | None:
    """Most items of a request; 0 without batches, None where only loading the model would tell, or what is wrong."""
    as_json = Model(model_dir, config).as_json()
    try:
        options = Options.from_model_config(as_json)
        file = find_model_file(model_dir, options)
        if options.auto_build or not (file.suffix == ".onnx" or described_plans(file)):
            return None
        return max_batch_size(as_json, inspect(file, options))
    except (PinstreamError, ImportError):
        return None
