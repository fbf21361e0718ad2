"""Can this machine run that plan? Told from the sidecar and the plan's header, before TensorRT is asked to load it.

TensorRT's own answer to a plan of another version or GPU is a null engine and a line in its log. Here each such case is
one message that says what the plan is, what this machine is, and which command builds the plan again.

Layout of the header, as far as it is looked at (little-endian):

| offset | TensorRT-RTX, seen in plans of 1.4.0.76 | TensorRT, as reported by others |
|---|---|---|
| 0 | `vtrt` | `ftrt` |
| 16 | u64: bytes of the whole file | |
| 24 | version, a byte each: 1 4 0 76 | version, a byte each |
| 28 | `vtrt` again | |
| 32 | u32: compute capabilities, a bit each: 7.5, 8.0, 8.6, 8.9, 12.0, others | |

What is not in this table is left to TensorRT to judge.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream.engines.build_spec import BuildSpec
from pinstream.engines.flavour import Flavour, is_installed, leading_numbers
from pinstream.errors import ConfigError, ModelFileError
from pinstream.sidecar import FILE_NAME, MALFORMED, Sidecar, file_sha256

_MAGICS = {b"vtrt": "tensorrt_rtx", b"ftrt": "tensorrt"}
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")
_RTX_OTHERS = 1 << len(_RTX_CAPABILITIES)
_HEADER_BYTES = 64
# In commands, for the model that nobody can name.
_SOURCE = "MODEL.onnx"
# What `pinstream build` calls its plans.
_BUILT = re.compile(r"model(\.b\d+)?\.plan")
# What people put in a plan's place, by how it starts.
_FOREIGN = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"PK\x03\x04": "a ZIP archive or a PyTorch checkpoint",
    b"\x80\x02": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, whose file was not fetched",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU: `compute_capability` as in "9.0", `cuda` the version of the CUDA runtime, as in "13.0"."""

    name: str
    compute_capability: str
    cuda: str = ""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class PlanHeader:
    """What a plan's first bytes say.

    Attributes:
        flavour: `tensorrt` or `tensorrt_rtx`.
        version: Of the TensorRT that built it.
        capabilities: The compute capabilities it was built for; empty where any will do, or the header does not say.
        nbytes: Length of the whole file; 0 where the header does not say.
    """

    flavour: str
    version: str
    capabilities: tuple[str, ...] = ()
    nbytes: int = 0


def this_gpu(index: int = 0) -> Gpu | None:
    """The GPU with that index, or None where there is none or CUDA's bindings are not installed."""
    try:
        from pinstream import cuda
    except ImportError:
        return None
    if cuda.device_count() <= index:
        return None
    return Gpu(cuda.device_name(index), cuda.compute_capability(index), cuda.runtime_version())


def read_header(path: Path) -> PlanHeader | None:
    """What the header says; None where the file does not start like a plan.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    flavour = _MAGICS.get(head[:4])
    if flavour is None or len(head) < _HEADER_BYTES:
        return None
    version = ".".join(str(byte) for byte in head[24:28])
    if head[:4] != b"vtrt" or head[28:32] != b"vtrt":
        return PlanHeader(flavour, version)
    bits = int.from_bytes(head[32:36], "little")
    named = tuple(text for i, text in enumerate(_RTX_CAPABILITIES) if bits >> i & 1)
    # A plan for others as well runs on what the list has no bit for, such as 9.0: the list would mislead.
    capabilities = () if bits >= _RTX_OTHERS else named
    return PlanHeader(flavour, version, capabilities, int.from_bytes(head[16:24], "little"))


def check_plan(path: Path, flavour: Flavour, gpu: Gpu | None, sidecar: Sidecar | None = None) -> str:
    """Hold a plan against this machine, without loading it. Reads the file once where the sidecar knows its digest.

    Args:
        path: The plan file.
        flavour: The TensorRT that is to load it.
        gpu: The GPU that is to run it; None leaves the GPU out of the check.
        sidecar: What `model.json` beside it says, if it is there.

    Returns:
        What is worth a line in the log although the plan runs; empty where there is nothing.

    Raises:
        ModelFileError: It is missing, empty, cut off, changed, no plan, or one for another TensorRT or GPU.
    """
    try:
        return _check_plan(path, flavour, gpu, sidecar)
    except (ConfigError, *MALFORMED) as error:
        raise ModelFileError(
            f"{path.parent / FILE_NAME} is malformed ({error!r}), so that {path.name} cannot be held against it; "
            f"build it again: {_rebuild_command(path, _SOURCE)}"
        ) from error


def _check_plan(path: Path, flavour: Flavour, gpu: Gpu | None, sidecar: Sidecar | None) -> str:
    rebuild = rebuild_command(path, flavour, gpu, sidecar)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; build it: {rebuild}")
    size = path.stat().st_size
    entry = _entry(path.name, sidecar)
    header = read_header(path)
    expected = int(entry.get("bytes") or (header.nbytes if header else 0))
    whole = f"{expected:,} bytes" if expected else "a plan"
    if size == 0:
        raise ModelFileError(f"{path} is empty, not {whole}; copy it again, or build it: {rebuild}")
    if header is None:
        _refuse_foreign(path, flavour, rebuild)
    if size < (expected or _HEADER_BYTES):
        raise ModelFileError(
            f"{path} is cut off: it has {size:,} bytes of {whole}; copy it again, or build it: {rebuild}"
        )
    _check_content(path, size, entry, rebuild)
    plan = _plan_facts(header, sidecar if entry else None)
    here = f"this machine has {flavour}" + (f" and an {gpu}" if gpu else "")
    if plan and not _fits(plan, flavour, gpu):
        other = plan.flavour != flavour.name and is_installed(plan.flavour)
        instead = f"set ENGINE to {plan.flavour}, which is installed too, or " if other else ""
        raise ModelFileError(
            f"{path} cannot run here: it is a plan of {plan}, and {here}; {instead}build it here: {rebuild}"
        )
    if plan and gpu and plan.capabilities and gpu.compute_capability not in plan.capabilities:
        # Seen to run all the same, with equal results: plans for any one of 7.5 to 12.0 on 9.0.
        return (
            f"{path} is a plan of {plan}, and {here}: it may run, but was not made for that; build it here: {rebuild}"
        )
    return ""


@dataclass(frozen=True)
class _PlanFacts:
    """What a plan is, by its sidecar or else by its header."""

    flavour: str
    version: str
    compute_capability: str
    capabilities: tuple[str, ...]
    version_compatible: bool
    hardware_compatible: bool
    certain: bool  # the sidecar's word; a header cannot tell whether a plan is compatible with more than it names

    def __str__(self) -> str:
        wanted = self.capabilities or ((self.compute_capability,) if self.compute_capability else ())
        return f"{self.flavour} {self.version}" + (f" for compute capability {', '.join(wanted)}" if wanted else "")


def _plan_facts(header: PlanHeader | None, sidecar: Sidecar | None) -> _PlanFacts | None:
    section = sidecar.sections.get("tensorrt") if sidecar else None
    if isinstance(section, Mapping):
        flavour = str(section.get("flavour", ""))
        return _PlanFacts(
            flavour,
            str(section.get("version", "")),
            # A plan of TensorRT-RTX is compiled for the GPU when it is loaded, wherever it was built.
            "" if flavour == "tensorrt_rtx" else str(section.get("compute_capability") or ""),
            tuple(str(text) for text in section.get("compute_capabilities") or ()),
            bool(section.get("version_compatible")),
            bool(section.get("hardware_compatible")),
            True,
        )
    if header is None:
        return None
    return _PlanFacts(header.flavour, header.version, "", header.capabilities, False, False, False)


def _fits(plan: _PlanFacts, flavour: Flavour, gpu: Gpu | None) -> bool:
    if plan.flavour != flavour.name:
        return False
    # TensorRT has plans that run on later versions as well; RTX has none, so that its header is enough.
    runs = _same(plan.version, flavour.version) or (plan.version_compatible and _later(flavour.version, plan.version))
    if (plan.certain or flavour.is_rtx) and not runs:
        return False
    if gpu is None or not plan.compute_capability or plan.compute_capability == gpu.compute_capability:
        return True
    return plan.hardware_compatible and float(gpu.compute_capability) >= 8.0


def _same(one: str, other: str) -> bool:
    # Some releases leave the build number out of the version that they report.
    pairs = list(zip(leading_numbers(one), leading_numbers(other), strict=False))
    return bool(pairs) and all(a == b for a, b in pairs)


def _later(one: str, other: str) -> bool:
    return leading_numbers(one) > leading_numbers(other)


def _entry(name: str, sidecar: Sidecar | None) -> Mapping[str, Any]:
    """The sidecar's entry for a plan file; empty where it has none."""
    plans = sidecar.sections.get("plans") if sidecar else None
    found = (plan for plan in plans or () if isinstance(plan, Mapping) and plan.get("file") == name)
    return next(found, {})


def _check_content(path: Path, size: int, entry: Mapping[str, Any], rebuild: str) -> None:
    """A plan is code: one that has changed since it was built is not run."""
    sha256 = str(entry.get("sha256") or "")
    if size != entry.get("bytes", size) or (sha256 and file_sha256(path) != sha256):
        raise ModelFileError(
            f"{path} is not the file that {FILE_NAME} beside it was written for: its content differs; copy both again, "
            f"remove {FILE_NAME} if it belongs to another plan, or build it: {rebuild}"
        )


def _refuse_foreign(path: Path, flavour: Flavour, rebuild: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    kind = next((kind for start, kind in _FOREIGN.items() if head.startswith(start)), "")
    if not kind and head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b":", b"B"):
        kind = "an ONNX model"  # its IR version, then the producer's name or the graph
    if not kind and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        kind = "a text"
    if kind:
        raise ModelFileError(f"{path} is {kind}, not a plan for {flavour}; build one: {rebuild}")


def wishes_here(sidecar: Sidecar | None, flavour: Flavour, gpu: Gpu | None) -> BuildSpec:
    """How the plans of a sidecar are to be built for this machine.

    Args:
        sidecar: What `model.json` beside them says; without one, or where it says nothing, the defaults.
        flavour: The TensorRT that is to build and load them.
        gpu: The GPU that is to run them.

    Raises:
        ConfigError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError: The sidecar is malformed.
    """
    section = (sidecar.sections.get("tensorrt") if sidecar else None) or {}
    spec = BuildSpec.from_json(section.get("options") or {})
    return spec.fitted_to(flavour, gpu.compute_capability if gpu else "")


def rebuild_command(path: Path, flavour: Flavour, gpu: Gpu | None, sidecar: Sidecar | None) -> str:
    """The command that builds a plan again for this machine, in backquotes; raises as wishes_here does.

    It names the model that `pinstream build` has left beside the plan, which has its labels and all else that was asked
    for when it was made; where there is none, the file that it was made from. Behind it stands what else has to be done
    for the new plans to be those that are loaded.
    """
    section = (sidecar.sections.get("onnx") if sidecar else None) or {}
    beside = path.parent / str(section.get("file") or _SOURCE)
    source = str(beside) if beside.is_file() else _source_of(sidecar)
    # Where both are installed, `build` takes the other one unless it is told.
    other = ["--flavour", flavour.name] if flavour.is_rtx and is_installed("tensorrt") else []
    return _rebuild_command(path, source, [*wishes_here(sidecar, flavour, gpu).arguments(), *other])


def _rebuild_command(path: Path, source: str, options: Sequence[str] = ()) -> str:
    words = ["pinstream", "build", source, "--plan", "-o", str(path.parent), *options]
    command = f"`{shlex.join(words)}`"
    if _BUILT.fullmatch(path.name):
        return command
    # The build leaves a file of another name as it is, and a configuration that names it would load it again.
    names = "default_model_filename, cc_model_filenames"
    return f"{command}, and leave {path.name} out of config.pbtxt where that names it ({names})"


def _source_of(sidecar: Sidecar | None) -> str:
    section = (sidecar.sections.get("source") if sidecar else None) or {}
    return str(section.get("file") or _SOURCE)
