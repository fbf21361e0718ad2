"""The sidecar: `model.json` beside a model file, saying what the model is without loading it.

`pinstream build` writes it; whoever serves the model reads it. The fields every model has are attributes of `Sidecar`;
what only the maker of a model knows (how it was built and proved, which network it holds) lies in named sections that
this module carries along without looking inside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pinstream.regular import MOST_BYTES, open_regular, read_small

FORMAT = 1
FILE_NAME = "model.json"
# What reading JSON of another shape than expected raises. A sidecar may come from anywhere.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_REMEDY = "build the model again with `pinstream build`"


class SidecarError(ValueError):
    """A sidecar that is missing, unreadable or malformed, or one that belongs to another model file."""


@dataclass(frozen=True)
class TensorEntry:
    """One input or output: `dtype` in Triton's terms without TYPE_ (`UINT8`, `FP32`), -1 for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sidecar:
    """What `model.json` says.

    Attributes:
        kind: `onnx` or `plan`.
        file: The model file's name, in the sidecar's own directory.
        sha256: The model file's SHA-256, in hexadecimal.
        inputs: The model's inputs, batch dimension included.
        outputs: The model's outputs, batch dimension included.
        labels: Class names, in the order of the class numbers; empty where the model has none.
        sections: Everything else, by section name (JSON values).
    """

    kind: str
    file: str
    sha256: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    labels: tuple[str, ...] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The sidecar as JSON text: what the model is first, how it came to be last."""
        fixed = asdict(self)
        sections = fixed.pop("sections")
        labels = fixed.pop("labels")
        return json.dumps({"format": FORMAT, **fixed, "labels": labels, **sections}, indent=2) + "\n"


def write(path: Path, sidecar: Sidecar) -> None:
    """Writes a sidecar, so that a reader sees the old file or the new one and never half of one.

    Raises:
        OSError: The directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(sidecar.to_json(), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Sidecar:
    """Reads a sidecar.

    Args:
        path: The sidecar file itself.

    Raises:
        SidecarError: The file is missing, is no JSON, has another format number, or lacks a field.
    """
    try:
        if (text := read_small(path)) is None:
            raise SidecarError(f"{path} is malformed: it is larger than {MOST_BYTES >> 20} MiB; {_REMEDY}")
        content = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise SidecarError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise SidecarError(f"{path} is malformed: expected a JSON object, found a {type(content).__name__}; {_REMEDY}")
    if content.get("format") != FORMAT:
        raise SidecarError(f"{path}: expected format {FORMAT}, found {content.get('format')!r}; {_REMEDY}")
    del content["format"]
    try:
        return Sidecar(
            kind=_text(content.pop("kind")),
            file=_file_name(content.pop("file")),
            sha256=_text(content.pop("sha256")),
            inputs=_tensors(content.pop("inputs")),
            outputs=_tensors(content.pop("outputs")),
            labels=tuple(_text(label) for label in _list(content.pop("labels", []))),
            sections=content,
        )
    except KeyError as error:
        raise SidecarError(f"{path}: the field {error} is missing; {_REMEDY}") from error
    except MALFORMED as error:
        raise SidecarError(f"{path} is malformed: {error}; {_REMEDY}") from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: The file cannot be read, or is a pipe or a device.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_model_file(directory: Path, sidecar: Sidecar) -> Path:
    """The model file that a sidecar speaks of, after making sure that it is this very file.

    Raises:
        SidecarError: The model file is missing or its content is not what the sidecar was written for.
    """
    path = directory / sidecar.file
    try:
        found = file_sha256(path)
    except OSError as error:
        raise SidecarError(f"{path}: cannot be read ({error.strerror}), but the sidecar names it") from error
    if found != sidecar.sha256:
        raise SidecarError(
            f"{path}: its SHA-256 is {found[:12]}..., the sidecar was written for {sidecar.sha256[:12]}...; "
            "build the model again or remove the sidecar"
        )
    return path


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {value!r}")
    return value


def _file_name(value: Any) -> str:
    # The sidecar may come from elsewhere: it must not lead a reader out of its own directory.
    name = _text(value)
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"expected a file name in the sidecar's own directory, found {name!r}")
    return name


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {value!r}")
    return value


def _tensors(value: Any) -> tuple[TensorEntry, ...]:
    return tuple(
        TensorEntry(_text(entry["name"]), _text(entry["dtype"]), tuple(int(size) for size in _list(entry["shape"])))
        for entry in _list(value)
    )
