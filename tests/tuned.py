"""A model with every setting that `pinstream tune` may write, and how precise each makes it behind Triton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from pinstream_cli.tuning.settings import Settings, with_changes
from pinstream_client import Model
from tests.held_out import HeldOut, precision

CLIENTS = 4
# Items of the requests, in turn.
SIZES = (1, 3, 8, 5)


def place(files: Iterable[Path], steps: Iterable[Iterable[Mapping[str, Any]]], repository: Path) -> dict[str, Settings]:
    """Make a model of `files` for each of the settings, and one as it is configured.

    Returns:
        The settings by the model's name.
    """
    config = text_format.Parse('backend: "pinstream"\ndynamic_batching { }\n', model_config_pb2.ModelConfig())
    every = [Settings(), *(with_changes(Settings(), changes) for step in steps for changes in step)]
    placed = {f"tuned_{number}": settings for number, settings in enumerate(every)}
    for name, settings in placed.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(text_format.MessageToString(settings.apply(config)))
        for file in files:
            (version / file.name).write_bytes(file.read_bytes())
    return placed


def precision_of(grpc_url: str, name: str, pictures: HeldOut) -> float:
    """AP of a serving graph's answers to requests of several sizes that come from several clients at once."""
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < len(pictures.images):
        bounds.append((start, start + SIZES[len(bounds) % len(SIZES)]))
        start = bounds[-1][1]
    with Model(f"grpc://{grpc_url}", name) as model, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(bound: tuple[int, int]) -> NDArray[np.float32]:
            return np.asarray(model(images=pictures.images[slice(*bound)])["candidates"], np.float32)

        return precision(list(np.concatenate(list(pool.map(ask, bounds)))), pictures)
