"""What runs a batch: one module per runtime, all behind the interface in base."""

from __future__ import annotations

from pathlib import Path

from pinstream.engines.base import Engine, Slot
from pinstream.errors import ModelFileError
from pinstream.options import Options

__all__ = ["Engine", "Slot", "find_model_file", "open_engine"]

MODEL_FILENAMES = ("model.plan", "model.onnx")


def find_model_file(model_dir: Path, options: Options) -> Path:
    """The file to load from a version directory.

    Args:
        model_dir: `<repository>/<model>/<version>`.
        options: Names the file, or leaves it to model.plan and then model.onnx.

    Raises:
        ModelFileError: There is none, or it is empty.
    """
    names = (options.model_filename,) if options.model_filename else MODEL_FILENAMES
    for name in names:
        path = model_dir / name
        if path.is_file():
            if path.stat().st_size == 0:
                raise ModelFileError(f"{path} is empty; copy the model there again")
            return path
    there = ", ".join(sorted(p.name for p in model_dir.iterdir())) if model_dir.is_dir() else "no such directory"
    raise ModelFileError(
        f"no {' or '.join(names)} in {model_dir} (there is: {there or 'nothing'}); put the model there"
    )


def open_engine(model_file: Path, options: Options) -> Engine:
    """Load a model file with the engine its options or its name call for.

    Raises:
        ModelFileError: The file is not what the engine can load.
    """
    name = options.engine
    if name == "auto":
        name = "onnxruntime" if model_file.suffix == ".onnx" else "tensorrt"
    if name == "onnxruntime":
        from pinstream.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_file, options)
    raise ModelFileError(f"{model_file} needs {name}, which this version of pinstream cannot run; serve the .onnx file")
