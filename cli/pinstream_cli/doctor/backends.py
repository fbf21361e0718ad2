"""What runs a model, whether this Triton has it, and whether it knows what the configuration says."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

import pinstream
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.install import CONTAINER_ROOT
from pinstream_cli.triton.repository import CONFIG, Model

PYTHON, OURS, ENSEMBLE = "python", "pinstream", "ensemble"
# Where Triton looks for agents, unless told otherwise.
AGENTS = CONTAINER_ROOT / "repoagents"
# The older field for the same, and all that Triton takes there.
PLATFORMS = {
    "ensemble": ENSEMBLE,
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
}
# What Triton guesses by where a configuration names none, in its order.
GUESSES = {
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.xml": "openvino",
    "model.pt": "pytorch",
    "model.py": PYTHON,
}


@dataclass(frozen=True)
class Triton:
    """The Triton that is to serve.

    Attributes:
        backends: Its backend directory.
        binary: Its executable.
    """

    backends: Path
    binary: Path


def backend_of(config: Any) -> str:
    """The backend that a configuration names; empty where it names none, and Triton guesses."""
    return str(config.backend or PLATFORMS.get(config.platform, config.platform))


def check_backend(area: str, model: Model, triton: Triton | None) -> Iterator[Check]:
    """Whether a model has a backend that this Triton has, and a configuration and agents that it knows.

    Args:
        area: What the checks belong to.
        model: The model.
        triton: The Triton that is to serve it; None leaves open what it has.
    """
    yield _backend(area, model, triton)
    yield from _agents(area, model)
    if triton is not None:
        yield from _runtime(area, model, triton)
        yield from _fields(area, model, triton.binary)


def _backend(area: str, model: Model, triton: Triton | None) -> Check:
    backend, platform = backend_of(model.config), model.config.platform
    if not model.config.backend and platform and platform not in PLATFORMS:
        return Check(
            area, "backend", "FIX", f'platform "{platform}", which Triton does not know', f'write backend: "{OURS}"'
        )
    guessed = "" if backend else _guess(model)
    if not backend and not guessed:
        found = "none, and nothing in the version directory to guess it by"
        return Check(area, "backend", "FIX", found, f'write backend: "{OURS}" into {model.path / CONFIG}')
    missing = _missing(backend or guessed, triton)
    if guessed:
        found = f"none; by the files Triton takes {missing or guessed}"
        return Check(
            area, "backend", "FIX" if missing else "WARN", found, f'write backend: "{OURS}" into {model.path / CONFIG}'
        )
    if missing:
        return Check(area, "backend", "FIX", missing, f'write backend: "{OURS}", or use a Triton with that backend')
    return Check(area, "backend", "OK", backend)


def _guess(model: Model) -> str:
    files = {path.name for version in model.versions[:1] for path in version.iterdir()}
    return next((backend for file, backend in GUESSES.items() if file in files), "")


def _missing(backend: str, triton: Triton | None) -> str:
    if backend in (OURS, PYTHON, ENSEMBLE) or triton is None or (triton.backends / backend).is_dir():
        return ""
    there = ", ".join(sorted(path.name for path in triton.backends.iterdir()))
    return f"{backend}, which this Triton has not (it has {there}, {OURS})"


def _agents(area: str, model: Model) -> Iterator[Check]:
    for agent in model.config.model_repository_agents.agents:
        library = AGENTS / agent.name / f"libtritonrepoagent_{agent.name}.so"
        if not library.is_file():
            yield Check(
                area, "agents", "FIX", f"there is no {library}", f"take {agent.name} out of model_repository_agents"
            )


def _runtime(area: str, model: Model, triton: Triton) -> Iterator[Check]:
    """The library that a configuration names instead of the backend's own."""
    runtime, backend = model.config.runtime, backend_of(model.config)
    if not runtime or not backend:
        return
    own = Path(pinstream.__file__).parent if backend == OURS else triton.backends / backend
    # A backend in Python lies in its own directory only.
    places = [own] if runtime == "model.py" else [*model.versions, model.path, own]
    if not any((place / runtime).is_file() for place in places):
        there = ", ".join(map(str, places))
        yield Check(area, "runtime", "FIX", f"there is no {runtime} in {there}", f"leave runtime out of {CONFIG}")


def _fields(area: str, model: Model, binary: Path) -> Iterator[Check]:
    """The client library, with which a configuration is read here, may know fields that this Triton does not."""
    for name in sorted(set(_field_names(model.config))):
        if _mentions(binary, "ensemble_scheduling") and not _mentions(binary, name):
            found = f"has {name}, which this Triton does not know"
            yield Check(area, CONFIG, "FIX", found, "leave it out, or use a newer Triton")


@cache
def _mentions(binary: Path, name: str) -> bool:
    """Whether an executable has a name in it, as it has those of all the fields that it knows."""
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name.encode()) >= 0


def _field_names(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        yield field.name
        # Of maps, those values; of lists, each entry.
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else [value]
        for part in parts:
            if isinstance(part, Message):
                yield from _field_names(part)
