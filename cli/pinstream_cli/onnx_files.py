"""ONNX files of any kind: reading them, describing them, running them in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from pinstream.engines.functions import why_refused
from pinstream.errors import first_line
from pinstream.regular import why_no_file
from pinstream_cli.build_error import BuildError

# Resize, TopK and GatherElements as used here came with opset 11, YOLOX's export tool defaults to it.
OLDEST_OPSET = 11
# Characters of what a message says of an input or output.
LONGEST = 120


def load_onnx(path: Path) -> Any:
    """Reads an ONNX file, with its external data.

    Returns:
        The onnx.ModelProto.

    Raises:
        BuildError: The file is missing, empty, or not ONNX, or its functions make too much of it.
    """
    try:
        if not path.is_file():
            found = "is a directory" if path.is_dir() else why_no_file(path) or "no such file"
            raise BuildError(f"{path}: {found}; expected the path of an ONNX file, such as yolox_m.onnx")
        if path.stat().st_size == 0:
            raise BuildError(f"{path}: the file is empty (0 bytes); download or export it again")
        with path.open("rb") as stream:
            start = stream.read(16)
        model = onnx.load(str(path))
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({error}); let this user read it") from error
    except BuildError:
        raise
    except Exception as error:  # protobuf's DecodeError, and what onnx raises for external data, share no base class
        raise BuildError(
            f"{path}: not an ONNX model, or a damaged one (it starts with {start!r}: {first_line(error)}); "
            "download or export it again"
        ) from error
    # Protobuf reads many a short text as a message of unknown fields.
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise BuildError(f"{path}: not an ONNX model (no graph in it; it starts with {start!r}); export it again")
    if found := why_refused(model):
        raise BuildError(f"{path} {found}")
    return model


def open_session(model: Any, path: Path, extra_outputs: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session on the CPU, with some inner tensors as outputs besides the model's own.

    Raises:
        BuildError: ONNX Runtime refuses the model.
    """
    if extra_outputs:
        model = copy.deepcopy(model)
        # ONNX Runtime works out the types of outputs that state none.
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        # Without enable_fallback a model that it refuses is printed about, and tried a second time.
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise BuildError(f"{path}: ONNX Runtime cannot load the model: {first_line(error)}") from error


def run_session(session: Any, outputs: Sequence[str], feed: dict[str, Any], path: Path) -> list[Any]:
    """One run of a session.

    Raises:
        BuildError: ONNX Runtime fails.
    """
    try:
        results: list[Any] = session.run(list(outputs), feed)
    except Exception as error:  # as above
        raise BuildError(f"{path}: ONNX Runtime cannot run the model: {first_line(error)}") from error
    return results


def plain_opset(model: Any, path: Path) -> Any:
    """The model with its local functions inlined, and at opset 11 at least.

    Raises:
        BuildError: It cannot be converted.
    """
    if model.functions:
        from onnx import inliner

        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # of functions that call themselves, among others
            raise BuildError(
                f"{path}: its functions cannot be inlined ({first_line(error)}); export it again"
            ) from error
    opset = opset_of(model)
    if opset >= OLDEST_OPSET:
        return model
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # a C++ exception without a class of its own
        raise BuildError(
            f"{path}: opset {opset}, which cannot be brought to {OLDEST_OPSET} ({first_line(error)}); "
            f"export again with --opset {OLDEST_OPSET}"
        ) from error


def dims(value: Any) -> list[int | str]:
    """A value's dimensions: a number where fixed, else its name (`?` if it has none)."""
    return [
        int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    ]


def signature(values: Sequence[Any]) -> str:
    """Inputs or outputs as text: `'images' FLOAT [1, 3, 640, 640]`; of names that nobody would read, the beginning."""
    entries = []
    for value in values:
        dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        entry = f"{value.name[:LONGEST]!r} {dtype} [{', '.join(map(str, dims(value)))}]"
        entries.append(entry if len(entry) <= LONGEST else f"{entry[:LONGEST]}...")
    shown = ", ".join(entries[:4]) + (", ..." if len(entries) > 4 else "")
    return f"{len(entries)}: {shown}" if len(entries) != 1 else shown


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def inferred_ranks(model: Any) -> dict[str, int]:
    """The number of dimensions of every tensor where ONNX's shape inference can tell it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # the ranks only spare work; ONNX Runtime judges the model
        return {}
    return {
        value.name: len(dims(value)) for value in inferred.graph.value_info if value.type.tensor_type.HasField("shape")
    }
