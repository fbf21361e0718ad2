"""What runs a batch: one module per runtime, all behind the interface in base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pinstream.engines.base import Engine, Slot
from pinstream.engines.plan_source import ONNX_FILE, described_plans, described_spec, read_sidecar, replaced_source
from pinstream.errors import ConfigError, ModelFileError
from pinstream.options import Options
from pinstream.places import check_place
from pinstream.preflight import this_gpu
from pinstream.regular import why_no_file
from pinstream.tensors import ModelSpec
from pinstream.verify import verify_model

__all__ = [
    "Engine",
    "Slot",
    "check_trust",
    "engine_name",
    "find_model_file",
    "inspect",
    "is_shared",
    "may_share",
    "open_engine",
    "open_for_instance",
    "served_model_file",
]

# What one process can listen to, less what else it has open.
MOST_CONNECTIONS = 500
MODEL_FILENAMES = ("model.plan", ONNX_FILE)


def served_model_file(model_dir: Path, options: Options) -> Path:
    """`find_model_file` for a server, which takes models from its own repositories alone.

    Raises:
        ModelFileError: As there, or it lies elsewhere.
    """
    check_place(model_dir)
    return find_model_file(model_dir, options)


def find_model_file(model_dir: Path, options: Options) -> Path:
    """The file to load from a version directory.

    Args:
        model_dir: `<repository>/<model>/<version>`.
        options: Names the file; else it is the sidecar's, else model.plan, else model.onnx.

    Returns:
        A file that is there; or with AUTO_BUILD the plan that is not, where there is a model.onnx to build it from. An
        empty plan is left to whoever loads it, who knows the command that builds it again.

    Raises:
        ModelFileError: There is none, or no regular file, or an empty ONNX file.
    """
    names = _candidates(model_dir, options)
    for path in (model_dir / name for name in names):
        if path.is_file():
            if path.stat().st_size == 0 and not _is_plan(path, options):
                raise ModelFileError(f"{path} is empty; copy the model there again")
            return path
    plan = model_dir / names[0]
    if options.auto_build and _is_plan(plan, options) and (model_dir / ONNX_FILE).is_file():
        return plan
    for path in (model_dir / name for name in names):
        if what := why_no_file(path):
            raise ModelFileError(f"{path} cannot be a model: it {what}; put the model there")
    there = ", ".join(sorted(p.name for p in model_dir.iterdir())) if model_dir.is_dir() else "no such directory"
    raise ModelFileError(
        f"no {' or '.join(names)} in {model_dir} (there is: {there or 'nothing'}); put the model there"
    )


def _is_plan(path: Path, options: Options) -> bool:
    return path.suffix != ".onnx" and options.engine != "onnxruntime"


def _candidates(model_dir: Path, options: Options) -> Sequence[str]:
    by_capability = dict(options.cc_model_filenames)
    gpu = this_gpu(options.device) if by_capability else None
    if gpu and gpu.compute_capability in by_capability:
        return (by_capability[gpu.compute_capability],)
    if options.model_filename:
        return (options.model_filename,)
    sidecar = read_sidecar(model_dir)
    return (sidecar.file,) if sidecar else MODEL_FILENAMES


def inspect(model_file: Path, options: Options) -> ModelSpec:
    """What a model takes and gives: from its sidecar where that says it, without touching a GPU, else from its file."""
    plans = described_plans(model_file)
    if plans and not (options.auto_build and replaced_source(model_file.parent)):
        return described_spec(model_file.parent, plans, options)
    if engine_name(model_file, options) == "onnxruntime":
        check_trust(model_file, options)
        from pinstream.engines.onnxruntime import read_spec

        return read_spec(model_file, options)
    engine = open_engine(model_file, options)
    engine.close()
    return engine.spec


def open_engine(model_file: Path, options: Options) -> Engine:
    """Load a model file, in this process, with the engine its options or its name call for.

    Raises:
        ModelFileError: The file is not what the engine can load, or with VERIFY not what was built.
        ConfigError: The configuration asks for what the engine cannot do.
    """
    check_trust(model_file, options)
    if engine_name(model_file, options) == "onnxruntime":
        from pinstream.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_file, options)
    if options.kind == "CPU" and this_gpu(options.device):
        raise ConfigError(
            f"instance_group has KIND_CPU, and {model_file} is run by TensorRT, on a GPU; "
            "set kind: KIND_GPU, or leave it out"
        )
    try:
        from pinstream.engines.tensorrt import TensorRTEngine
    except ImportError as error:
        raise ModelFileError(
            f"{model_file} needs packages that are not installed here ({error}); "
            "pip install 'pinstream[gpu]' where the server is"
        ) from error

    return TensorRTEngine(model_file, options)


def open_for_instance(model_file: Path, options: Options) -> Engine:
    """Load a model file for one of the instances of a model: here, or in a process that all of them share.

    Raises:
        ModelFileError: The file is not what the engine can load.
        ConfigError: The configuration asks for what this engine, shared or not, cannot do.
    """
    if not is_shared(model_file, options):
        return open_engine(model_file, options)
    from pinstream.shared.process import shared_engine

    return shared_engine(model_file, options)


def check_trust(model_file: Path, options: Options) -> None:
    """With VERIFY, hold a model's files against its sidecar, and their owners against this process.

    Raises:
        ModelFileError: They are not what was built, or others can write them.
    """
    if options.verify:
        is_onnx = engine_name(model_file, options) == "onnxruntime" or model_file.suffix == ".onnx"
        libraries = [model_file.parent / plugin for plugin in options.plugins]
        verify_model(model_file, is_onnx=is_onnx, libraries=libraries)


def engine_name(model_file: Path, options: Options) -> str:
    """What runs a model file: onnxruntime, or tensorrt, or tensorrt_rtx where ENGINE says so."""
    if options.engine != "auto":
        return options.engine
    return "onnxruntime" if model_file.suffix == ".onnx" and not options.auto_build else "tensorrt"


def may_share(options: Options) -> bool:
    """Whether a model's settings leave it open that one process runs the engine for all of its instances."""
    return options.share_engine != "off" and not _crosses_on_gpu(options)


def _crosses_on_gpu(options: Options) -> bool:
    """Whether tensors are taken or given on the GPU, which cannot cross to another process in host memory."""
    return options.output_memory == "gpu" or options.gpu_inputs


def is_shared(model_file: Path, options: Options) -> bool:
    """Whether one process runs the engine for all instances of a model.

    Raises:
        ConfigError: SHARE_ENGINE is on, and the configuration asks for what a shared engine cannot do; or EXECUTIONS is
            set without one.
    """
    on_gpu = _crosses_on_gpu(options)
    if options.share_engine == "on" and on_gpu:
        raise ConfigError(
            "SHARE_ENGINE is on, and a shared engine takes and gives host memory only; set SHARE_ENGINE to off, or "
            'leave OUTPUT_MEMORY=gpu and FORCE_CPU_ONLY_INPUT_TENSORS="no" out of config.pbtxt'
        )
    several = options.instances * options.executions > 1
    by_itself = several and not on_gpu and engine_name(model_file, options) != "onnxruntime"
    shared = by_itself if options.share_engine == "auto" else options.share_engine == "on"
    if options.instances * options.executions > MOST_CONNECTIONS:
        raise ConfigError(
            f"{options.instances} instances with EXECUTIONS {options.executions} are more connections to their engine "
            f"than {MOST_CONNECTIONS}; lower one of them"
        )
    if options.executions > 1 and not shared:
        raise ConfigError(
            f"EXECUTIONS is {options.executions}, and each has its part in a shared engine; set SHARE_ENGINE to on, or "
            "leave EXECUTIONS out of config.pbtxt"
        )
    return shared
