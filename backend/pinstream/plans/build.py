"""ONNX -> plans and their sidecar, in a directory that Triton can serve."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pinstream import sidecar as sidecars
from pinstream.engines.build_spec import BuildSpec
from pinstream.engines.flavour import Flavour
from pinstream.engines.profiles import PlanInfo, PlanTensor
from pinstream.errors import ConfigError, ModelFileError
from pinstream.plans import graph as graphs
from pinstream.plans.builder import Progress, build_engine, uses_tf32
from pinstream.plans.half import to_half
from pinstream.plans.half_check import losses_in_half
from pinstream.plans.jobs import plan_jobs, smallest_shapes
from pinstream.plans.keep import keep_onnx
from pinstream.plans.locks import default_cache_dir
from pinstream.plans.timing import TimingCache
from pinstream.preflight import Gpu, this_gpu
from pinstream.sidecar import Sidecar, TensorEntry

# Sections that speak of the file they lie beside, and so are written anew.
_OWN_SECTIONS = frozenset({"plans", "tensorrt", "onnx", "external_data", "build_seconds", "fp16_check"})


@dataclass(frozen=True)
class PlanBuild:
    """What a build made.

    Attributes:
        directory: Where the plans and `model.json` are.
        sidecar: The content of `model.json`.
        plans: What each plan file holds.
        sizes: Bytes of each plan file.
        seconds: Duration of the whole build.
        flavour: What built them, as in "tensorrt_rtx 1.4.0.76".
        warnings: What the user should know, one line each: numbers lost in FP16, a cache that cannot be used.
    """

    directory: Path
    sidecar: Sidecar
    plans: tuple[PlanInfo, ...]
    sizes: tuple[int, ...]
    seconds: float
    flavour: str
    warnings: tuple[str, ...] = ()


def build_plan(
    onnx: Path,
    out: Path,
    spec: BuildSpec,
    flavour: Flavour,
    *,
    gpu: Gpu | None = None,
    progress: Progress = lambda file, fraction: None,
    cache_dir: Path | None = None,
    keep_weights: bool = True,
    sections: Mapping[str, Any] | None = None,
) -> PlanBuild:
    """Build the plans of an ONNX model and write them with their sidecar.

    A sidecar beside the model, if it is the model's, gives its labels and what else its maker wrote there.

    Args:
        onnx: The model: FP32, FP16, or with explicit quantization.
        out: The directory to write into; made if it is not there. Plans of an earlier build are replaced.
        spec: How to build.
        flavour: The TensorRT to build with.
        gpu: The GPU it is built on and for; the first of this machine if None.
        progress: Called with a plan file's name and how much of its build is done, 0 to 1.
        cache_dir: Where TensorRT's timing cache is kept; the user's cache directory if None.
        keep_weights: Copy a model beside its plans that keeps weights in other files, together with these. Others are
            copied always.
        sections: What else the sidecar shall say. With "fp16_check" among them, FP16 was compared with FP32 already, so
            that it is not compared here.

    Raises:
        ModelFileError: The model cannot be read or TensorRT cannot take it; `out` is as it was.
        ConfigError: The specification does not fit the model or this TensorRT; `out` is as it was.
        OSError: `out` cannot be written.
    """
    started = time.monotonic()
    model = graphs.read_graph(onnx, weights=spec.precision == "fp16")
    inputs = graphs.inputs_of(model)
    jobs = plan_jobs(inputs, graphs.outputs_of(model), spec)
    precision = graphs.stated_precision(model)
    written, warnings = dict(sections or {}), []
    if spec.precision == "fp16":
        single, model, precision = model, _halved(model, onnx, spec), "fp16"
        lost = "" if "fp16_check" in written else losses_in_half(single, model, smallest_shapes(inputs, jobs[0]))
        if lost:
            written["fp16_check"] = {"lost": lost}
            warnings.append(f"FP16 loses numbers of this model: {lost}")
    gpu = gpu or this_gpu()
    if gpu is None and "current" in spec.compute_capabilities:
        raise ConfigError('there is no GPU here whose compute capability is "current"; name one, as in 8.9')
    timing = TimingCache(flavour, gpu.name if gpu else "none", cache_dir or default_cache_dir())
    with _scratch_in(out) as scratch:
        plans, sizes = [], []
        for job in jobs:
            fixed = model if job.batch is None else graphs.with_batch(model, job.batch)
            content, info = build_engine(flavour, _serialized(fixed, onnx), onnx, job, spec, progress, timing)
            (scratch / job.file).write_bytes(content)
            plans.append(replace(info, sha256=hashlib.sha256(content).hexdigest()))
            sizes.append(len(content))
        seconds = time.monotonic() - started
        written |= {
            "plans": [{**plan.to_json(), "bytes": size} for plan, size in zip(plans, sizes, strict=True)],
            "tensorrt": _tensorrt_section(flavour, gpu, spec, precision),
            "build_seconds": round(seconds, 3),
            **keep_onnx(onnx, out, scratch, weights=keep_weights),
        }
        sidecar = _sidecar(onnx, plans, written)
        sidecars.write(scratch / sidecars.FILE_NAME, sidecar)
        _move(scratch, out, [plan.file for plan in plans])
    warnings += [timing.complaint] if timing.complaint else []
    return PlanBuild(out, sidecar, tuple(plans), tuple(sizes), seconds, str(flavour), tuple(warnings))


@contextlib.contextmanager
def _scratch_in(out: Path) -> Iterator[Path]:
    """A directory on the same disk as `out`; where `out` was made for it and nothing came of it, both go."""
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as name:
            yield Path(name)
    finally:
        if not existed and not any(out.iterdir()):
            out.rmdir()


def _halved(model: Any, onnx: Path, spec: BuildSpec) -> Any:
    wished = json.loads(graphs.metadata(model, graphs.FP32_NODES_KEY) or "[]")
    try:
        return to_half(model, (*spec.fp32_nodes, *wished))
    except ModelFileError as error:
        raise ModelFileError(f"{onnx}: {error}") from error


def _serialized(model: Any, onnx: Path) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:  # protobuf's limit
        raise ModelFileError(
            f"{onnx}: with its weights inside it is larger than the 2 GB that ONNX allows; "
            "export it in FP16 with external weights, and build it with precision fp32, which keeps its types"
        ) from error


def _tensorrt_section(flavour: Flavour, gpu: Gpu | None, spec: BuildSpec, precision: str) -> dict[str, Any]:
    own = gpu.compute_capability if gpu else None
    wanted = [own if text == "current" else text for text in spec.compute_capabilities]
    return {
        "flavour": flavour.name,
        "version": flavour.version,
        "compute_capability": own,
        "compute_capabilities": wanted,
        "gpu": gpu.name if gpu else None,
        "cuda": gpu.cuda if gpu else None,
        "precision": precision,
        "tf32": uses_tf32(flavour, spec),
        "version_compatible": spec.version_compatible,
        "hardware_compatible": spec.hardware_compatible,
        "options": asdict(spec),
        "arguments": spec.arguments(),
    }


def _sidecar(onnx: Path, plans: Sequence[PlanInfo], sections: dict[str, Any]) -> Sidecar:
    base = _sidecar_of(onnx)
    carried = {key: value for key, value in base.sections.items() if key not in _OWN_SECTIONS} if base else {}
    carried.setdefault("source", {"file": onnx.name, "sha256": graphs.digest(onnx)})
    return Sidecar(
        kind="plan",
        file=plans[0].file,
        sha256=plans[0].sha256,
        inputs=_entries([plan.inputs for plan in plans]),
        outputs=_entries([plan.outputs for plan in plans]),
        labels=base.labels if base else (),
        sections={**carried, **sections},
    )


def _sidecar_of(onnx: Path) -> Sidecar | None:
    """The sidecar beside an ONNX file, if it was written for it or for plans made from it."""
    try:
        found = sidecars.read(onnx.parent / sidecars.FILE_NAME)
    except sidecars.SidecarError:
        return None
    written_for = found.sha256 if found.kind == "onnx" else (found.sections.get("onnx") or {}).get("sha256")
    return found if written_for == sidecars.file_sha256(onnx) else None


def _entries(plans: Sequence[Sequence[PlanTensor]]) -> tuple[TensorEntry, ...]:
    """One entry for each tensor: -1 where its size is dynamic or differs between plans."""
    return tuple(
        TensorEntry(
            tensors[0].name,
            tensors[0].dtype,
            tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*(t.shape for t in tensors), strict=True)),
        )
        for tensors in zip(*plans, strict=True)
    )


def _move(scratch: Path, out: Path, plans: Sequence[str]) -> None:
    """Puts the files in their place, the sidecar last, and removes plans that are none of its any more."""
    files = [path.name for path in scratch.iterdir() if path.name != sidecars.FILE_NAME]
    for name in (*files, sidecars.FILE_NAME):
        os.replace(scratch / name, out / name)
    for old in (*out.glob("model.plan"), *out.glob("model.b*.plan")):
        if old.name not in plans:
            old.unlink()
