"""The ONNX model beside its plans, with the files of its weights: from there they can be built again, anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pinstream.plans import graph as graphs
from pinstream.sidecar import FILE_NAME, file_sha256

ONNX_FILE = "model.onnx"


def keep_onnx(onnx: Path, out: Path, scratch: Path, *, weights: bool) -> dict[str, Any]:
    """Put a model beside its plans, unless weights of it would be left behind.

    Args:
        onnx: The model.
        out: Where it is to lie; what is there already stays as it is.
        scratch: Where the files are copied to, on their way to `out`.
        weights: Copy the files, too, that it keeps weights in.

    Returns:
        The sidecar's sections about it: `onnx` and, where there are such files, `external_data`.

    Raises:
        OSError: A file cannot be read or written.
    """
    names = sorted({str(Path(location)) for location in graphs.external_files(graphs.read_graph(onnx))})
    if names and not (weights and all(map(_may_lie_beside, names))):
        return {"onnx": {"file": onnx.name, "sha256": file_sha256(onnx)}}
    sections: dict[str, Any] = {"onnx": _kept(onnx, ONNX_FILE, out, scratch)}
    if names:
        sections["external_data"] = [_kept(onnx.parent / name, name, out, scratch) for name in names]
    return sections


def _may_lie_beside(name: str) -> bool:
    """Whether it is a plain name, and none that the plans' directory has for something else."""
    return Path(name).name == name and name not in (ONNX_FILE, FILE_NAME) and Path(name).suffix != ".plan"


def _kept(source: Path, name: str, out: Path, scratch: Path) -> dict[str, str]:
    """Copy a file that does not lie there already; how the sidecar lists it."""
    if source.resolve() == (out / name).resolve():
        return {"file": name, "sha256": file_sha256(source)}
    # Of the copy: what came of a source that changes meanwhile is what will be loaded.
    return {"file": name, "sha256": file_sha256(Path(shutil.copyfile(source, scratch / name)))}
