"""What ONNX files take and give, by another process: opening one may take long and hold off Ctrl-C, or end the process.

That process opens all files of a repository, one after the other: starting one takes as long as opening many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pinstream.errors import ModelFileError
from pinstream.options import Options
from pinstream.tensors import ModelSpec
from pinstream_cli.apart import apart
from pinstream_cli.build_error import BuildError

# For a file.
PATIENCE_S = 60.0


class OnnxFiles:
    """Files that are opened once each.

    Args:
        files: Those that will be asked for; another one costs a process of its own.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        # The tensors of each, or what is wrong with it.
        self._found: dict[Path, Any] = {}
        try:
            import pinstream.engines.onnxruntime  # noqa: F401  # where this fails, so does `spec`
        except ImportError:
            return
        self._open(files)

    def spec(self, file: Path, options: Options) -> ModelSpec:
        """What a file takes and gives.

        Raises:
            ModelFileError: ONNX Runtime cannot load it, takes longer than a minute, or its process ends.
            ConfigError: BUCKETS asks for what the model cannot do.
            ImportError: ONNX Runtime cannot be imported.
        """
        from pinstream.engines.onnxruntime import Described, model_spec

        if file not in self._found:
            self._open([file])
        found = self._found[file]
        if isinstance(found, str):
            raise ModelFileError(found)
        inputs, outputs = ([Described(*tensor) for tensor in tensors] for tensors in found)
        return model_spec(inputs, outputs, options)

    def _open(self, files: Iterable[Path]) -> None:
        left = list(dict.fromkeys(files))
        while left:
            begun: list[str] = []
            paths = [str(path) for path in left]
            try:
                found = apart(Path("ONNX Runtime"), signatures, paths, seconds=PATIENCE_S, progress=begun.append)
                self._found.update(zip(left, found, strict=True))
                return
            except BuildError as error:
                # The one that it was at; the others are opened again, by another process.
                file = left.pop(max(0, min(len(begun), len(left)) - 1))
                happened = str(error).partition("; ")[0]
                self._found[file] = f"{happened}; export it again, or take it out: Triton opens it, too"


def signatures(files: Sequence[str], progress: Callable[[str], None]) -> list[Any]:
    """For `apart`: inputs and outputs of each file, of each its name, type and shape, or what is wrong with it."""
    from pinstream.engines.onnxruntime import read_signature

    def signature(file: str) -> Any:
        progress(f"opening {file}")
        try:
            return [[astuple(tensor) for tensor in tensors] for tensors in read_signature(Path(file))]
        except ModelFileError as error:
            return str(error)

    return [signature(file) for file in files]
