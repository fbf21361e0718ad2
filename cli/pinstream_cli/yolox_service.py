"""A YOLOX export made into what the service serves: fused, proved against the export, and written with its sidecar."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinstream.sidecar import FILE_NAME, Sidecar, TensorEntry, file_sha256, write
from pinstream_cli.apart import PATIENCE_S, apart
from pinstream_cli.build_error import BuildError
from pinstream_cli.named_files import read_named

if TYPE_CHECKING:
    from pinstream_cli.yolox_quantize import Quantization
    from pinstream_cli.yolox_recognise import YoloxExport
    from pinstream_cli.yolox_verify import Check

MODEL_FILE = "model.onnx"
DEFAULT_CANDIDATES = 300


@dataclass(frozen=True)
class BuildReport:
    """What a build made.

    Attributes:
        model: The serving graph, `model.onnx` in the output directory.
        sidecar: Its `model.json`.
        source: The export.
        source_kind: The export in words.
        input_size: Height and width in pixels.
        labels: One name for each class.
        candidates: K, the candidates per image.
        checks: Every comparison of the serving graph with the export.
        source_bytes: Size of the export.
        model_bytes: Size of the serving graph.
        seconds: Duration of the whole build.
        hint: What the user may want to know or do, or empty.
        quantization: What of it is in INT8; None for nothing.
    """

    model: Path
    sidecar: Path
    source: Path
    source_kind: str
    input_size: tuple[int, int]
    labels: tuple[str, ...]
    candidates: int
    checks: tuple[Check, ...]
    source_bytes: int
    model_bytes: int
    seconds: float
    hint: str
    quantization: Quantization | None = None

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {**asdict(self), **{name: str(getattr(self, name)) for name in ("model", "sidecar", "source")}}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> BuildReport:
        """What another process's `as_json` said."""
        from pinstream_cli.yolox_quantize import Quantization
        from pinstream_cli.yolox_verify import Check

        height, width = told["input_size"]
        own: dict[str, Any] = {
            **{name: Path(told[name]) for name in ("model", "sidecar", "source")},
            "input_size": (height, width),
            "labels": tuple(told["labels"]),
            "checks": tuple(Check(**check) for check in told["checks"]),
            "quantization": Quantization(**told["quantization"]) if told["quantization"] else None,
        }
        return cls(**{**told, **own})

    @property
    def max_box_error_px(self) -> float:
        """The largest difference of a box coordinate in all checks, in letterbox pixels."""
        return max(check.max_box_error_px for check in self.checks)

    @property
    def max_score_error(self) -> float:
        """The largest difference of a score in all checks."""
        return max(check.max_score_error for check in self.checks)


def build_service(
    model: Path,
    out: Path,
    *,
    candidates: int = DEFAULT_CANDIDATES,
    labels: Path | None = None,
    images: Sequence[Path] = (),
    int8: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> BuildReport:
    """Builds the serving graph of a YOLOX export and proves it against the export.

    Args:
        model: A YOLOX export: static or --dynamic, with or without --decode_in_inference.
        out: The directory to write `model.onnx` and `model.json` into; made if it is not there.
        candidates: How many of the best boxes per image leave the network, 1 to 3840.
        labels: A text file of class names, one a line. COCO's names if None and there are 80 classes, else class_0 on.
        images: Real images to check the serving graph with, besides drawn ones.
        int8: A directory of pictures to quantize the graph with, once it has been checked.
        progress: Called with a few words at the start of every step.

    Raises:
        NotYoloxError: The model is ONNX, but not a YOLOX export.
        BuildError: Anything else; nothing has been written then.
    """
    try:
        from pinstream_cli.yolox_graph import MOST_CANDIDATES, fuse
        from pinstream_cli.yolox_quantize import calibration_pictures, quantize
        from pinstream_cli.yolox_recognise import recognise
        from pinstream_cli.yolox_verify import verify
    except ImportError as error:
        raise BuildError(f"{error}; building needs more packages: pip install 'pinstream[server]'") from error

    started = time.monotonic()
    if not 1 <= candidates <= MOST_CANDIDATES:
        raise BuildError(f"--candidates must be 1 to {MOST_CANDIDATES} (TensorRT's limit), found {candidates}")
    _check_destination(out, model)
    pictures = calibration_pictures(int8) if int8 is not None else []
    progress(f"reading {model.name}")
    export = recognise(model)
    names, hint = class_names(labels, export.num_classes)
    count = min(candidates, export.num_anchors)
    progress("fusing the serving graph")
    fused = fuse(export, count, names)
    progress("checking it against the export")
    checks = verify(export, fused, images)
    quantization = None
    if pictures:
        progress(f"quantizing it on {len(pictures)} pictures")
        fused, quantization = quantize(fused, pictures)
    progress(f"writing {out}")
    content = fused.SerializeToString()
    _write(out, content, _sidecar(export, content, count, names, checks, quantization))
    return BuildReport(
        model=out / MODEL_FILE,
        sidecar=out / FILE_NAME,
        source=model,
        source_kind=_kind(export),
        input_size=export.input_size,
        labels=names,
        candidates=count,
        checks=checks,
        source_bytes=model.stat().st_size,
        model_bytes=len(content),
        seconds=time.monotonic() - started,
        hint=hint,
        quantization=quantization,
    )


def build_apart(
    model: Path,
    out: Path,
    *,
    candidates: int = DEFAULT_CANDIDATES,
    labels: Path | None = None,
    images: Sequence[Path] = (),
    int8: Path | None = None,
    seconds: float = PATIENCE_S,
    progress: Callable[[str], None] = lambda step: None,
) -> BuildReport:
    """`build_service` in a process of its own, which is stopped where a step takes more than `seconds`; see `apart`."""
    report: BuildReport = apart(
        model,
        build_here,
        str(model),
        str(out),
        read=BuildReport.from_json,
        candidates=candidates,
        labels=labels and str(labels),
        images=[str(image) for image in images],
        int8=int8 and str(int8),
        seconds=seconds,
        progress=progress,
    )
    return report


def build_here(
    model: str,
    out: str,
    *,
    candidates: int,
    labels: str | None,
    images: Sequence[str],
    int8: str | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """`build_service` for `apart`, with the paths as texts."""
    report = build_service(
        Path(model),
        Path(out),
        candidates=candidates,
        labels=Path(labels) if labels else None,
        images=[Path(image) for image in images],
        int8=Path(int8) if int8 else None,
        progress=progress,
    )
    return report.as_json()


def class_names(path: Path | None, num_classes: int) -> tuple[tuple[str, ...], str]:
    """The class names, from a file or by default, and a hint about them (empty if there is nothing to say).

    Raises:
        BuildError: The file cannot be read, has an empty line, or does not name every class exactly once.
    """
    from pinstream_client.labels import COCO

    if path is None and num_classes == len(COCO):
        return COCO, ""
    if path is None:
        names = tuple(f"class_{index}" for index in range(num_classes))
        return names, f"class names are {names[0]} to {names[-1]}; give the real ones with --labels FILE, one a line"
    try:
        lines = read_named(path).decode("utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise BuildError(f"{path}: the labels cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: the labels must be UTF-8 text, one name a line ({error.reason})") from error
    names = tuple(line.strip() for line in lines)
    if len(names) != num_classes:
        raise BuildError(
            f"{path}: {len(names)} labels, but the model has {num_classes} classes; give one name a line for each class"
        )
    if "" in names:
        raise BuildError(f"{path}: line {names.index('') + 1} is empty; give one name a line for each class")
    return names, ""


def _check_destination(out: Path, model: Path) -> None:
    """Fails early on what would fail after minutes of checks."""
    if (out / MODEL_FILE).exists() and model.exists() and (out / MODEL_FILE).samefile(model):
        raise BuildError(f"{out}: {MODEL_FILE} would overwrite the export itself; choose another directory with -o")
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise BuildError(f"{out}: {existing} is a file; choose a directory with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BuildError(f"{out}: {existing} cannot be written; choose another directory with -o")


def _sidecar(
    export: YoloxExport,
    content: bytes,
    candidates: int,
    labels: tuple[str, ...],
    checks: Sequence[Check],
    quantization: Quantization | None,
) -> Sidecar:
    from pinstream_cli.yolox_graph import INPUT, OUTPUT

    height, width = export.input_size
    sections: dict[str, Any] = {
        "yolox": {"input_size": [height, width], "num_classes": export.num_classes, "candidates": candidates},
        "source": {"file": export.path.name, "sha256": file_sha256(export.path)},
        "built_with": {name: _version(name) for name in ("pinstream", "onnx", "onnxruntime")},
        "checks": [{**asdict(check), "precision": "fp32"} for check in checks],
    }
    if quantization is not None:
        sections["quantization"] = asdict(quantization)
    return Sidecar(
        kind="onnx",
        file=MODEL_FILE,
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=(TensorEntry(INPUT, "UINT8", (-1, height, width, 3)),),
        outputs=(TensorEntry(OUTPUT, "FP32", (-1, candidates, 6)),),
        labels=labels,
        sections=sections,
    )


def _write(out: Path, content: bytes, sidecar: Sidecar) -> None:
    """Writes both files beside their final places first, so that a full disk leaves an earlier build untouched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as scratch:
            (Path(scratch) / MODEL_FILE).write_bytes(content)
            write(Path(scratch) / FILE_NAME, sidecar)
            for name in (MODEL_FILE, FILE_NAME):
                os.replace(Path(scratch) / name, out / name)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror}); choose another directory with -o") from error


def _kind(export: YoloxExport) -> str:
    batch = "dynamic batch" if export.batch is None else f"batch {export.batch}"
    return f"{batch}, {'decoded' if export.output_decoded else 'undecoded'}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
