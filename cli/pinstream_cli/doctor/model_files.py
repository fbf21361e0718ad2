"""The files of one version of a model of our backend: are they there, are they what was built, will they load here?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.engines import find_model_file
from pinstream.engines.flavour import load_flavour
from pinstream.engines.plan_source import ONNX_FILE, described_plans
from pinstream.errors import ModelFileError, PinstreamError
from pinstream.options import Options
from pinstream.preflight import check_plan, this_gpu
from pinstream.verify import others_can_write, verify_model
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.repository import CONFIG, Model, spec_of


def check_files(area: str, model: Model, version: Path) -> Iterator[Check]:
    """Every file of a version of a model whose backend is ours.

    Args:
        area: What the checks belong to.
        model: The model.
        version: The version directory.
    """
    try:
        options = model.options
        file = find_model_file(version, options)
    except PinstreamError as error:
        yield failed(area, f"{version.name}/", error)
        return
    # With AUTO_BUILD a plan need not be there, or of any use: it is built from the ONNX file.
    onnx = version / ONNX_FILE
    builds = options.auto_build and onnx.is_file()
    yield readable(area, onnx if builds else file)
    yield from _sidecar(area, file, builds=builds)
    yield _permissions(area, version, file)
    if options.verify:
        yield _verified(area, version, onnx if builds and not file.is_file() else file)
    if file.suffix == ".plan" or options.auto_build:
        yield _plan_here(area, version, file, options)
    else:
        yield _onnx_here(area, model, version, file)


def readable(area: str, file: Path) -> Check:
    """Whether a file is there, has content, and can be read."""
    name = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return Check(area, name, "FIX", "is not there", f"put it there: {file}")
    if not os.access(file, os.R_OK):
        return Check(area, name, "FIX", "cannot be read by this user", f"chmod a+r {file}")
    if not file.stat().st_size:
        return Check(area, name, "FIX", "is empty", f"copy it there again: {file}")
    return Check(area, name, "OK", f"{file.stat().st_size:,} bytes")


def failed(area: str, name: str, error: Exception) -> Check:
    """What one of our errors says, its last part being what to do."""
    found, _, remedy = str(error).rpartition("; ")
    kind = "put right what it says" if isinstance(error, ModelFileError) else f"correct {CONFIG}"
    return Check(area, name, "FIX", found or remedy, remedy if found else kind)


def _sidecar(area: str, file: Path, *, builds: bool) -> Iterator[Check]:
    path = file.parent / sidecars.FILE_NAME
    if not path.is_file():
        return
    name = f"{file.parent.name}/{path.name}"
    try:
        sidecar = sidecars.read(path)
        if not builds:
            sidecars.check_model_file(file.parent, sidecar)
        yield Check(area, name, "OK", f"describes {sidecar.file}, whose SHA-256 it has")
    except sidecars.SidecarError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check(area, name, "FIX", found, remedy or "build the model again, or remove the sidecar")


def _permissions(area: str, version: Path, file: Path) -> Check:
    """A plan is code that this server runs: whoever can write it can do what the server's user can."""
    name = f"{version.name}/ permissions"
    there = [path for path in (version.parent, version, file, version / sidecars.FILE_NAME) if path.exists()]
    others = next((text for path in there if (text := others_can_write(path))), "")
    if not others:
        return Check(area, name, "OK", "only root and this user can write")
    found, _, remedy = others.rpartition("; ")
    return Check(area, name, "WARN", found, remedy)


def _verified(area: str, version: Path, file: Path) -> Check:
    name = f"{version.name}/ VERIFY"
    try:
        verify_model(file, is_onnx=file.suffix == ".onnx")
    except PinstreamError as error:
        return failed(area, name, error)
    return Check(area, name, "OK", f"{file.name} is what was built, and nobody else can change it")


def _onnx_here(area: str, model: Model, version: Path, file: Path) -> Check:
    name = f"{version.name}/{file.name} here"
    try:
        spec = spec_of(Model(model.path, model.config, (version,)))
    except (PinstreamError, sidecars.SidecarError) as error:
        return failed(area, name, error)
    return Check(area, name, "OK", "ONNX Runtime opens it" if spec else "not looked into")


def _plan_here(area: str, version: Path, file: Path, options: Options) -> Check:
    """Whether TensorRT will take a plan, by its header and sidecar, or build another."""
    name = f"{version.name}/{file.name} here"
    try:
        gpu, flavour = this_gpu(), load_flavour()
    except PinstreamError as error:
        return failed(area, name, error)
    try:
        sidecar = sidecars.read(version / sidecars.FILE_NAME) if (version / sidecars.FILE_NAME).is_file() else None
        files = [version / plan.file for plan in described_plans(file)] or [file]
        warnings = [text for plan in files if (text := check_plan(plan, flavour, gpu, sidecar))]
    except (PinstreamError, sidecars.SidecarError) as error:
        if not options.auto_build:
            return failed(area, name, error)
        found, _, _ = str(error).rpartition("; ")
        if gpu is None:
            return Check(area, name, "FIX", f"{found}; AUTO_BUILD needs a GPU, and there is none", "serve the .onnx")
        if not (version / ONNX_FILE).is_file():
            return Check(area, name, "FIX", f"{found}; AUTO_BUILD builds from {ONNX_FILE}", f"put {ONNX_FILE} there")
        return Check(area, name, "OK", f"AUTO_BUILD builds it when the model is loaded: {found}")
    if gpu is None:
        return Check(area, name, "FIX", f"a plan for {flavour}, and this machine has no GPU", "serve the .onnx instead")
    fits = f"fits {gpu.name} ({gpu.compute_capability}), {flavour}"
    return Check(area, name, "WARN" if warnings else "OK", "; ".join(warnings) or fits)
