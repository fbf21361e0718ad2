"""A model with settings that `pinstream tune` may write, alone and combined, and how precise they make it in Triton."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from pinstream_cli.tuning.settings import AS_CONFIGURED, Settings, with_changes
from pinstream_client import Model
from tests.held_out import HeldOut, precision

CLIENTS = 4
# Items of the requests, in turn.
SIZES = (1, 3, 8, 5)
# What `pinstream tune` tries, as settings.steps gives it.
Steps = Sequence[Sequence[Mapping[str, Any]]]


def place(files: Iterable[Path], steps: Steps, repository: Path) -> dict[str, Settings]:
    """Make a model of `files` for each of the settings, for combinations of them, and one as it is configured.

    Returns:
        The settings by the model's name.
    """
    config = text_format.Parse('backend: "pinstream"\ndynamic_batching { }\n', model_config_pb2.ModelConfig())
    alone = [with_changes(AS_CONFIGURED, changes) for step in steps for changes in step]
    placed = {f"tuned_{number}": one for number, one in enumerate((AS_CONFIGURED, *alone, *combinations(steps)))}
    for name, settings in placed.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(text_format.MessageToString(settings.apply(config)))
        for file in files:
            (version / file.name).write_bytes(file.read_bytes())
    return placed


def combinations(steps: Steps) -> list[Settings]:
    """What a search may end with: the least or the most of every step, of all of them or by turns."""
    ends = [(min(step, key=_size), max(step, key=_size)) for step in steps]
    found = []
    for first, turning in itertools.product((0, 1), repeat=2):
        chosen = [pair[(first + turning * number) % 2] for number, pair in enumerate(ends)]
        found.append(reduce(with_changes, chosen, AS_CONFIGURED))
    return found


def _size(changes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(changes.values())


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
