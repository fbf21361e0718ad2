"""What runs a batch: one module per runtime, all behind the interface in base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pinstream.engines.base import Engine, Slot
from pinstream.engines.plan_source import described_plans, read_sidecar
from pinstream.engines.profiles import model_spec
from pinstream.errors import ModelFileError
from pinstream.options import Options
from pinstream.tensors import ModelSpec

__all__ = ["Engine", "Slot", "find_model_file", "inspect", "open_engine"]

MODEL_FILENAMES = ("model.plan", "model.onnx")


def find_model_file(model_dir: Path, options: Options) -> Path:
    """The file to load from a version directory.

    Args:
        model_dir: `<repository>/<model>/<version>`.
        options: Names the file; else it is the sidecar's, else model.plan, else model.onnx.

    Raises:
        ModelFileError: There is none, or it is empty.
    """
    names = _candidates(model_dir, options)
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


def _candidates(model_dir: Path, options: Options) -> Sequence[str]:
    by_capability = dict(options.cc_model_filenames)
    if by_capability:
        from pinstream import cuda

        capability = cuda.compute_capability(options.device)
        if capability in by_capability:
            return (by_capability[capability],)
    if options.model_filename:
        return (options.model_filename,)
    sidecar = read_sidecar(model_dir)
    return (sidecar.file,) if sidecar else MODEL_FILENAMES


def inspect(model_file: Path, options: Options) -> ModelSpec:
    """What a model takes and gives: from its sidecar where that says it, without touching a GPU, else by loading it."""
    plans = described_plans(model_file)
    if plans:
        return model_spec(plans, options)
    engine = open_engine(model_file, options)
    engine.close()
    return engine.spec


def open_engine(model_file: Path, options: Options) -> Engine:
    """Load a model file with the engine its options or its name call for.

    Raises:
        ModelFileError: The file is not what the engine can load.
    """
    name = options.engine
    if name == "auto":
        name = "onnxruntime" if model_file.suffix == ".onnx" and not options.auto_build else "tensorrt"
    if name == "onnxruntime":
        from pinstream.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_file, options)
    from pinstream.engines.tensorrt import TensorRTEngine

    return TensorRTEngine(model_file, options)
