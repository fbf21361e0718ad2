"""Which plan files make a model, and whether they run here; where they do not, they may be built (AUTO_BUILD)."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.engines.flavour import Flavour
from pinstream.engines.profiles import PlanInfo, model_spec
from pinstream.errors import ConfigError, ModelFileError
from pinstream.options import Options
from pinstream.preflight import Gpu, check_plan, wishes_here
from pinstream.sidecar import Sidecar
from pinstream.tensors import ModelSpec
from pinstream.verify import verify_model

LOGGER = logging.getLogger("pinstream.tensorrt")
ONNX_FILE = "model.onnx"


def described_plans(model_file: Path) -> list[PlanInfo]:
    """The plans that make one model with `model_file`, as the sidecar beside it lists them; none without a sidecar.

    Raises:
        ModelFileError: The sidecar is malformed.
    """
    if model_file.suffix == ".onnx":
        return []
    sidecar = read_sidecar(model_file.parent)
    entries = sidecar.sections.get("plans", []) if sidecar else []
    try:
        plans = [PlanInfo.from_json(entry) for entry in entries]
    except sidecars.MALFORMED as error:
        raise ModelFileError(
            f"{model_file.parent / sidecars.FILE_NAME} has a malformed section 'plans' ({error!r}); "
            "build the model again"
        ) from None
    return plans if model_file.name in {plan.file for plan in plans} else []


def described_spec(directory: Path, plans: Sequence[PlanInfo], options: Options) -> ModelSpec:
    """What described plans take and gives together.

    Raises:
        ModelFileError: The sidecar contradicts itself.
        ConfigError: As model_spec.
    """
    try:
        return model_spec(plans, options)
    except sidecars.MALFORMED as error:
        raise ModelFileError(
            f"{directory / sidecars.FILE_NAME} has plans that cannot be ({error!r}); build the model again"
        ) from None


def read_sidecar(directory: Path) -> Sidecar | None:
    """The sidecar of a version directory, or None where there is none.

    Raises:
        ModelFileError: It is malformed.
    """
    path = directory / sidecars.FILE_NAME
    if not path.is_file():
        return None
    try:
        return sidecars.read(path)
    except sidecars.SidecarError as error:
        raise ModelFileError(str(error)) from error


def usable_plans(model_file: Path, options: Options, flavour: Flavour, gpu: Gpu | None) -> list[Path]:
    """The plan files of a model, each held against this machine before TensorRT sees it.

    Args:
        model_file: A plan, or with AUTO_BUILD the ONNX file itself.
        options: AUTO_BUILD and CACHE_DIR.
        flavour: The TensorRT that will load them.
        gpu: The GPU that will run them.

    Returns:
        The files; with AUTO_BUILD those of the cache where the model's own do not fit.

    Raises:
        ModelFileError: A plan does not fit, with both sides and the command that builds it again.
        ConfigError: The plans need a setting that is off, or AUTO_BUILD options that it does not have.
    """
    try:
        files, warnings = check_plans(model_file, flavour, gpu)
        _check_settings(model_file, options)
    except ModelFileError as error:
        if not options.auto_build:
            raise
        return built_plans(model_file.parent, options, flavour, gpu, error)
    for warning in warnings:
        LOGGER.warning("%s", warning)
    return files


def check_plans(model_file: Path, flavour: Flavour, gpu: Gpu | None) -> tuple[list[Path], list[str]]:
    """Hold the plan files of a model against this machine, without TensorRT and without building any.

    Args:
        model_file: A plan.
        flavour: The TensorRT that is to load them.
        gpu: The GPU that is to run them; None leaves the GPU out of the check.

    Returns:
        The files, and what is worth a warning although they run.

    Raises:
        ModelFileError: A plan does not fit, with both sides and the command that builds it again.
    """
    if model_file.suffix == ".onnx":
        raise ModelFileError(
            f"{model_file} is no plan; build one with `pinstream build {model_file.name} --plan -o DIR`, "
            "or set AUTO_BUILD"
        )
    files = [model_file.parent / plan.file for plan in described_plans(model_file)] or [model_file]
    sidecar = read_sidecar(model_file.parent)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # each reads its whole file for its digest
        warnings = list(threads.map(lambda file: check_plan(file, flavour, gpu, sidecar), files))
    return files, [warning for warning in warnings if warning]


def _check_settings(model_file: Path, options: Options) -> None:
    """Hold a model's sidecar against its settings.

    Raises:
        ConfigError: The plans need a setting that is off.
        ModelFileError: With AUTO_BUILD, they are of another model.onnx than the one that lies beside them.
    """
    sidecar = read_sidecar(model_file.parent)
    if sidecar is None or not described_plans(model_file):
        return
    section = sidecar.sections.get("tensorrt")
    compatible = isinstance(section, Mapping) and section.get("version_compatible")
    if compatible and not options.version_compatible:
        raise ConfigError(
            f"{model_file} was built with --version-compatible and brings code along, which runs only where it is "
            'allowed to; set the parameter VERSION_COMPATIBLE to "true" in config.pbtxt'
        )
    if options.auto_build and (replaced := replaced_source(model_file.parent)):
        raise ModelFileError(f"{model_file} was built from another {replaced} than the one beside it")


def replaced_source(directory: Path) -> str:
    """The file of the model beside a version directory's plans that is not what they were built from; empty for none.

    Raises:
        ModelFileError: The sidecar is malformed.
    """
    sidecar = read_sidecar(directory)
    if sidecar is None or not (directory / ONNX_FILE).is_file():
        return ""
    try:
        onnx = sidecar.sections.get("onnx") or {}
        built_from = {ONNX_FILE: str(onnx.get("sha256") or "")}
        built_from |= {str(e["file"]): str(e["sha256"]) for e in sidecar.sections.get("external_data") or ()}
    except sidecars.MALFORMED as error:
        raise ModelFileError(
            f"{directory / sidecars.FILE_NAME} has a malformed section 'onnx' or 'external_data' ({error!r}); "
            "build the model again"
        ) from None
    there = ((name, sha256) for name, sha256 in built_from.items() if sha256 and (directory / name).is_file())
    return next((name for name, sha256 in there if sidecars.file_sha256(directory / name) != sha256), "")


def built_with_tf32(directory: Path) -> bool:
    """Whether the plans of a version directory multiply FP32 in TF32; so unless their sidecar says otherwise."""
    sidecar = read_sidecar(directory)
    section = sidecar.sections.get("tensorrt") if sidecar else None
    return not isinstance(section, Mapping) or section.get("tf32") is not False


def check_source(directory: Path, options: Options, gpu: Gpu | None, reason: ModelFileError) -> Path:
    """The file that AUTO_BUILD builds a model's plans from, after making sure that it can.

    Args:
        directory: The model's version directory.
        options: VERIFY.
        gpu: The GPU to build for.
        reason: Why the plans that are there will not do.

    Raises:
        ModelFileError: There is no such file or no GPU, or with VERIFY the file is not what was built.
    """
    onnx = directory / ONNX_FILE
    if not onnx.is_file():
        raise ModelFileError(
            f"{reason}; AUTO_BUILD would build it, but there is no {ONNX_FILE} beside it; put it there"
        ) from reason
    if gpu is None:
        raise ModelFileError(
            f"{reason}; AUTO_BUILD needs a GPU to build for, and there is none; to serve {ONNX_FILE} on the CPU remove "
            "AUTO_BUILD and the plan"
        ) from reason
    if options.verify:
        verify_model(onnx, is_onnx=True)
    return onnx


def built_plans(
    directory: Path, options: Options, flavour: Flavour, gpu: Gpu | None, reason: ModelFileError
) -> list[Path]:
    """What AUTO_BUILD does: the plans of a model's ONNX file for this machine, from the cache or built now.

    Args:
        directory: The model's version directory.
        options: CACHE_DIR and VERIFY.
        flavour: The TensorRT that will build and load them.
        gpu: The GPU that will run them.
        reason: Why the plans that are there will not do.

    Raises:
        ModelFileError: They cannot be built.
        ConfigError: The model needs other options, as sizes of its dynamic dimensions; the text has the command.
    """
    onnx = check_source(directory, options, gpu, reason)
    assert gpu is not None, "check_source has seen to it"
    try:  # serving plans does not need what building does
        from pinstream.plans import cached_plan
    except ImportError as missing:
        raise ModelFileError(
            f"{reason}; AUTO_BUILD cannot build it here: {missing}; pip install 'pinstream[server]' where the server is"
        ) from reason

    LOGGER.warning("AUTO_BUILD: %s", reason)
    try:
        spec = wishes_here(read_sidecar(directory), flavour, gpu)
    except (ConfigError, *sidecars.MALFORMED) as error:
        raise ModelFileError(f"{directory / sidecars.FILE_NAME} has malformed build options ({error!r})") from error
    cache = Path(options.cache_dir) if options.cache_dir else None
    try:
        built = cached_plan(onnx, spec, flavour, gpu, cache, progress=_log_progress)
    except ConfigError as error:  # it asks for options, which nobody can give at a load
        command = shlex.join(["pinstream", "build", str(onnx), "--plan", "-o", str(directory)])
        raise ConfigError(
            f"{error}; AUTO_BUILD has only the options that a {sidecars.FILE_NAME} beside {onnx.name} has: build once "
            f"with `{command}` and what is asked for"
        ) from error
    return _files_of(built)


def _log_progress(file: str, fraction: float) -> None:
    if fraction >= 1:
        LOGGER.info("built %s", file)


def _files_of(directory: Path) -> list[Path]:
    sidecar = read_sidecar(directory)
    entries: Sequence[PlanInfo] = described_plans(directory / sidecar.file) if sidecar else ()
    return [directory / plan.file for plan in entries]
