"""Plans built when a model is loaded, once for each TensorRT, GPU, model and set of options, and kept."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.engines.build_spec import BuildSpec
from pinstream.engines.flavour import Flavour
from pinstream.errors import ModelFileError
from pinstream.plans import graph as graphs
from pinstream.plans.build import build_plan
from pinstream.plans.builder import Progress
from pinstream.plans.locks import default_cache_dir, locked
from pinstream.preflight import Gpu
from pinstream.sidecar import file_sha256

LOGGER = logging.getLogger("pinstream.plans")

# Part of every key: a change of what a build makes must not meet plans of the old kind.
_FORMAT = 2


def cached_plan(
    onnx: Path,
    spec: BuildSpec,
    flavour: Flavour,
    gpu: Gpu,
    cache_dir: Path | None = None,
    *,
    progress: Progress = lambda file, fraction: None,
) -> Path:
    """The directory with the plans of an ONNX model; they are built where they are not there yet.

    However many processes ask at once, one builds and the others wait for it.

    Args:
        onnx: The model.
        spec: How to build.
        flavour: The TensorRT that will load the plans.
        gpu: The GPU that will run them; for `tensorrt` it is CUDA's current device, on which it builds.
        cache_dir: Where plans are kept; the user's cache directory if None.
        progress: As build_plan's.

    Returns:
        A directory with `model.json` and the plan files it names. It belongs to the cache.

    Raises:
        ModelFileError, ConfigError: As build_plan; or the cache directory cannot be written.
    """
    key = {
        "format": _FORMAT,
        "flavour": flavour.name,
        "version": flavour.version,
        "compute_capability": gpu.compute_capability,
        "onnx": graphs.digest(onnx),
        # What the model's maker wrote beside it goes into the plans' sidecar.
        "sidecar": _digest_if_there(onnx.parent / sidecars.FILE_NAME),
        "spec": asdict(spec),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    root = cache_dir or default_cache_dir()
    entry = root / "plans" / f"{flavour.name}-{flavour.version}-{gpu.compute_capability}-{digest[:24]}"
    try:
        with locked(entry):
            if not _is_whole(entry):
                _build(onnx, spec, flavour, gpu, entry, root, progress)
    except OSError as error:
        remedy = "make room there" if error.errno == errno.ENOSPC else "make it writable"
        where = f" ({error.filename})" if error.filename else ""
        raise ModelFileError(
            f"the plan cache {root} cannot be used: {error.strerror}{where}; {remedy}, or name another directory"
        ) from error
    return entry


def _build(
    onnx: Path, spec: BuildSpec, flavour: Flavour, gpu: Gpu, entry: Path, root: Path, progress: Progress
) -> None:
    # What is there is damaged, or was left by a process that died; the lock says that nobody is at it.
    for old in (entry, *entry.parent.glob(f".{entry.name}-*")):
        shutil.rmtree(old, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        # They are built again from the model itself, never from a copy in here.
        built = build_plan(onnx, scratch, spec, flavour, gpu=gpu, progress=progress, cache_dir=root, keep_weights=False)
        for warning in built.warnings:
            LOGGER.warning("%s: %s", onnx, warning)
        os.rename(scratch, entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    """Whether every plan is there as it was built; a plan is code, so that is its content and not its size."""
    try:
        plans = sidecars.read(entry / sidecars.FILE_NAME).sections["plans"]
        return all(file_sha256(entry / plan["file"]) == plan["sha256"] for plan in plans)
    except (sidecars.SidecarError, KeyError, TypeError, OSError):
        return False


def _digest_if_there(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""
