"""What runs a batch: one module per runtime, all behind the interface in base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.engines.base import Engine, Slot
from pinstream.engines.profiles import PlanInfo, model_spec
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
    described = (model_dir / sidecars.FILE_NAME).is_file()
    return (_read_sidecar(model_dir).file,) if described else MODEL_FILENAMES


def inspect(model_file: Path, options: Options) -> ModelSpec:
    """What a model takes and gives: from its sidecar where that says it, without touching a GPU, else by loading it."""
    plans = _described_plans(model_file)
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
        name = "onnxruntime" if model_file.suffix == ".onnx" else "tensorrt"
    if name == "onnxruntime":
        from pinstream.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_file, options)
    from pinstream.engines.tensorrt import TensorRTEngine

    files = [model_file.parent / plan.file for plan in _described_plans(model_file)]
    return TensorRTEngine(files or [model_file], options)


def _described_plans(model_file: Path) -> list[PlanInfo]:
    """The plans that make one model with `model_file`, as the sidecar beside it lists them; none without a sidecar."""
    if model_file.suffix == ".onnx" or not (model_file.parent / sidecars.FILE_NAME).is_file():
        return []
    entries = _read_sidecar(model_file.parent).sections.get("plans", [])
    try:
        plans = [PlanInfo.from_json(entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{model_file.parent / sidecars.FILE_NAME} has a malformed section 'plans' ({error!r}); "
            "build the model again"
        ) from None
    return plans if model_file.name in {plan.file for plan in plans} else []


def _read_sidecar(model_dir: Path) -> sidecars.Sidecar:
    try:
        return sidecars.read(model_dir / sidecars.FILE_NAME)
    except sidecars.SidecarError as error:
        raise ModelFileError(str(error)) from error
