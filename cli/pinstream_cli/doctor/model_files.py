"""The files of one version of a model of our backend: are they there, are they what was built, will they load here?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pinstream import sidecar as sidecars
from pinstream.autocomplete import complete
from pinstream.engines import check_trust, engine_name, find_model_file, is_shared
from pinstream.engines.flavour import Flavour, load_flavour
from pinstream.engines.plan_source import ONNX_FILE, check_plans, check_source, described_plans
from pinstream.engines.profiles import model_spec
from pinstream.errors import ModelFileError, PinstreamError
from pinstream.options import Options
from pinstream.preflight import Gpu, this_gpu
from pinstream.verify import others_can_write, overrides, places_of
from pinstream_cli.doctor.backends import OURS, backend_of
from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.ownership import asks_to_verify, unverified_code
from pinstream_cli.triton.repository import (
    CONFIG,
    Model,
    ReadOnnx,
    RepositoryError,
    model_directories,
    read_configurations,
    read_model,
)


def onnx_files(repositories: Iterable[Path]) -> Iterator[Path]:
    """The ONNX files of all versions of the models that ONNX Runtime runs in our backend."""
    for directory in (path for repository in repositories for path in model_directories(repository)):
        try:
            model = read_model(directory)
            options = model.options
        except (RepositoryError, PinstreamError):
            continue  # told where the model is looked at
        for version in (*model.versions, *model.left_out) if backend_of(model.config) == OURS else ():
            with contextlib.suppress(PinstreamError, OSError):
                if engine_name(file := _model_file(version, options), options) == "onnxruntime":
                    yield file


def check_files(area: str, model: Model, version: Path, read_onnx: ReadOnnx) -> Iterator[Check]:
    """Every file of a version of a model whose backend is ours.

    Args:
        area: What the checks belong to.
        model: The model.
        version: The version directory.
        read_onnx: What ONNX files take and give.
    """
    try:
        options = model.options
        file = _model_file(version, options)
        # Refuses options that cannot go together.
        is_shared(file, options)
    except PinstreamError as error:
        yield failed(area, f"{version.name}/", error)
        return
    # With AUTO_BUILD a plan need not be there, or of any use: it is built from the ONNX file.
    onnx = version / ONNX_FILE
    builds = options.auto_build and onnx.is_file() and engine_name(file, options) != "onnxruntime"
    yield readable(area, onnx if builds else file)
    yield from _sidecar(area, file, builds=builds)
    yield permissions(area, version, [*_files_of(file), version / sidecars.FILE_NAME])
    if options.verify:
        yield _verified(area, version, file, options)
    if engine_name(file, options) == "onnxruntime":
        yield _onnx_here(area, model, file, options, read_onnx)
    else:
        yield _plan_here(area, model, file, options)


def check_overrides(area: str, model: Model) -> Iterator[Check]:
    """Whether Triton runs code in place of this backend for one of its models, which nothing verifies then.

    Args:
        area: What the checks belong to.
        model: The model.
    """
    configurations = read_configurations(model.path)
    if code := unverified_code(configurations):
        found, _, remedy = code.rpartition("; ")
        yield Check(area, "code", "FIX" if asks_to_verify(configurations) else "WARN", found, remedy)


def readable(area: str, file: Path, *, may_be_empty: bool = False) -> Check:
    """Whether a file is there, has content, and can be read."""
    name = f"{file.parent.name}/{file.name}"
    if not file.exists():
        return Check(area, name, "FIX", "is not there", f"put it there: {file}")
    # Pipes and devices may never end; a directory for a file ends tritonserver.
    if not file.is_file():
        return Check(area, name, "FIX", "is no regular file", f"put a file there: {file}")
    if not os.access(file, os.R_OK):
        return Check(area, name, "FIX", "cannot be read by this user", f"chmod a+r {file}")
    if not may_be_empty and not file.stat().st_size:
        return Check(area, name, "FIX", "is empty", f"copy it there again: {file}")
    return Check(area, name, "OK", f"{file.stat().st_size:,} bytes")


def failed(area: str, name: str, error: Exception) -> Check:
    """What one of our errors says, its last part being what to do."""
    found, _, remedy = str(error).rpartition("; ")
    kind = "put right what it says" if isinstance(error, ModelFileError) else f"correct {CONFIG}"
    return Check(area, name, "FIX", found or remedy, remedy if found else kind)


def _sidecar(area: str, file: Path, *, builds: bool) -> Iterator[Check]:
    path = file.parent / sidecars.FILE_NAME
    name = f"{file.parent.name}/{path.name}"
    if not path.is_file():
        if path.exists():
            yield Check(area, name, "WARN", "is no regular file, and is not read", f"remove it: {path}")
        return
    try:
        sidecar = sidecars.read(path)
        if not builds:
            sidecars.check_model_file(file.parent, sidecar)
        vouched = "" if builds else ", whose SHA-256 it has"
        yield Check(area, name, "OK", f"describes {sidecar.file}{vouched}")
    except sidecars.SidecarError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check(area, name, "FIX", found, remedy or "build the model again, or remove the sidecar")


def permissions(area: str, version: Path, files: Sequence[Path]) -> Check:
    """A plan or a model.py is code that this server runs: whoever can write it can do what the server's user can.

    So can who writes config.pbtxt, the repository, or a directory on the way to what a link leads to.

    Args:
        area: What the check belongs to.
        version: The version directory.
        files: Its files; those that are not there are passed over.
    """
    name = f"{version.name}/ permissions"
    there = [path for path in places_of(version, [*files, *overrides(version.parent, version)]) if path.exists()]
    others = next((text for path in there if (text := others_can_write(path))), "")
    if not others:
        return Check(area, name, "OK", "only root and this user can write")
    found, _, remedy = others.rpartition("; ")
    return Check(area, name, "WARN", found, remedy)


def _model_file(version: Path, options: Options) -> Path:
    # Triton hands over the directory of the file that it is told of.
    return find_model_file((version / (options.model_filename or ONNX_FILE)).parent, options)


def _files_of(file: Path) -> list[Path]:
    try:
        plans = [file.parent / plan.file for plan in described_plans(file)]
    except PinstreamError:
        # Told where the sidecar itself is looked at.
        plans = []
    return [file, *(plan for plan in plans if plan != file)]


def _verified(area: str, version: Path, file: Path, options: Options) -> Check:
    name = f"{version.name}/ VERIFY"
    try:
        check_trust(file, options)
    except PinstreamError as error:
        return failed(area, name, error)
    return Check(area, name, "OK", f"{file.name} is what was built, and nobody else can change it")


def _onnx_here(area: str, model: Model, file: Path, options: Options, read_onnx: ReadOnnx) -> Check:
    name = f"{file.parent.name}/{file.name} here"
    try:
        complete(model.as_json(), read_onnx(file, options))
    except ImportError as error:
        return Check(area, name, "FIX", f"ONNX Runtime cannot be imported: {error}", 'pip install "pinstream[server]"')
    except PinstreamError as error:
        return failed(area, name, error)
    return Check(area, name, "OK", "ONNX Runtime opens it")


def _plan_here(area: str, model: Model, file: Path, options: Options) -> Check:
    name = f"{file.parent.name}/{file.name} here"
    try:
        gpu, flavour = this_gpu(), load_flavour(options.engine)
        if any(group.kind == group.KIND_CPU for group in model.config.instance_group):
            options = replace(options, kind="CPU")
        check = plan_check(area, file, options, flavour, gpu)
        plans = described_plans(file)
        if plans and check.status != "FIX":
            complete(model.as_json(), model_spec(plans, options))
    except PinstreamError as error:
        return failed(area, name, error)
    return check


def plan_check(area: str, file: Path, options: Options, flavour: Flavour, gpu: Gpu | None) -> Check:
    """Whether TensorRT will take the plans of a model, by their headers and sidecar, or others will be built.

    Args:
        area: What the check belongs to.
        file: The model file; with AUTO_BUILD it need not be there.
        options: The model's.
        flavour: The TensorRT of this machine.
        gpu: The GPU of this machine, if it has one.
    """
    name = f"{file.parent.name}/{file.name} here"
    if gpu is not None and options.kind == "CPU":
        found = "instance_group has KIND_CPU, and a plan runs on a GPU"
        return Check(area, name, "FIX", found, "write kind: KIND_GPU, or leave it out")
    try:
        _, warnings = check_plans(file, flavour, gpu)
    except ModelFileError as reason:
        return _built(area, name, file, options, gpu, reason)
    if gpu is None:
        return Check(area, name, "FIX", f"a plan for {flavour}, and this machine has no GPU", "serve the .onnx instead")
    if warnings:
        found, _, remedy = warnings[0].rpartition("; ")
        return Check(area, name, "WARN", found, remedy)
    return Check(area, name, "OK", f"fits {gpu.name} ({gpu.compute_capability}), {flavour}")


def _built(area: str, name: str, file: Path, options: Options, gpu: Gpu | None, reason: ModelFileError) -> Check:
    if not options.auto_build:
        return failed(area, name, reason)
    try:
        onnx = check_source(file.parent, options, gpu, reason)
    except ModelFileError as error:
        return failed(area, name, error)
    found, _, _ = str(reason).rpartition("; ")
    return Check(area, name, "OK", f"AUTO_BUILD builds it from {onnx.name} when the model is loaded: {found}")
