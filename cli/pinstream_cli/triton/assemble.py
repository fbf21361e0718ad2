"""The run directory: everything tritonserver reads, put together afresh for one run, so that the sources stay clean."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pinstream
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import leftovers
from pinstream_cli.triton.completion import complete_model, complete_service
from pinstream_cli.triton.install import TritonInstall
from pinstream_cli.triton.sizing import DETECTOR, plain_config, size_service

# Triton takes a hidden directory in a model repository for a model.
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


class RunDirectory:
    """A temporary directory with `backends/` and `models/`, removed on exit.

    Args:
        install: The Triton whose Python backend goes into it.

    Attributes:
        path: The directory.
        complete: Whether its models' configurations lack nothing.
        lock: File descriptor that says that the directory is in use; children that read it have to inherit it.

    Raises:
        OSError: There is no room for it.
    """

    def __init__(self, install: TritonInstall) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=leftovers.RUN_PREFIX))
        self.lock = -1
        self.backends = self.path / "backends"
        self.models = self.path / "models"
        self.log = self.path / "tritonserver.log"
        self.complete = False
        try:
            self._assemble(install)
        except BaseException:
            self.remove()
            raise

    def _assemble(self, install: TritonInstall) -> None:
        self.lock = leftovers.hold(self.path)
        self.models.mkdir()
        _assemble_python_backend(install, self.backends / "python")
        # A copy, so that Python's caches are not written into the source tree.
        shutil.copytree(Path(pinstream.__file__).parent, self.backends / "pinstream", ignore=_NOT_COPIED)

    def add_yolox_service(self, files: Sequence[Path]) -> None:
        """Add the YOLOX ensemble with the detector's files: model.json, and the model under whatever name."""
        shutil.copytree(service_repository(), self.models, ignore=_NOT_COPIED, dirs_exist_ok=True)
        for ensemble in self.models.iterdir():
            (ensemble / "1").mkdir(exist_ok=True)
        size_service(self.models, gpu=any(file.suffix == ".plan" for file in files))
        only_graph = sum(file.suffix == ".onnx" for file in files) == 1 and not any(f.suffix == ".plan" for f in files)
        for file in files:
            name = "model.onnx" if only_graph and file.suffix == ".onnx" else file.name
            link_or_copy(file, self.models / DETECTOR / "1" / name)
        self.complete = complete_service(self.models, DETECTOR)
        keep_to_us(self.models)

    def add_model(self, name: str, files: Sequence[Path]) -> None:
        """Add a plain model, one model file or a built directory's files.

        A plan has the one line that it needs. An ONNX model has limits on what waits as well.
        """
        is_plan = any(file.suffix == ".plan" for file in files)
        version = self.models / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text('backend: "pinstream"\n' if is_plan else plain_config())
        for file in files:
            link_or_copy(file, version / (file.name if len(files) > 1 else f"model{file.suffix}"))
        self.complete = complete_model(version.parent) is not None
        keep_to_us(self.models)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self.lock)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _assemble_python_backend(install: TritonInstall, target: Path) -> None:
    target.mkdir(parents=True)
    for file in install.python_backend.iterdir():
        if file.is_file() and file.name != install.stub.name:
            # Triton refuses a backend library that is a link leading out of the backend directory.
            link_or_copy(file, target / file.name)
    # The stub finds its libraries relative to where it really lies, so it stays there.
    (target / install.stub.name).symlink_to(install.stub)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` where the file system allows it, a copy otherwise."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def keep_to_us(directory: Path) -> None:
    """Take from others what umask or a checkout gave them, as VERIFY asks for it; of what is only linked, nothing."""
    for path in (path for path in directory.rglob("*") if not path.is_symlink()):
        status = path.stat()
        if path.is_dir() or status.st_nlink == 1:
            path.chmod(status.st_mode & ~0o022)


def service_repository() -> Path:
    """The model repository of the YOLOX service: beside the packages in a checkout, inside them once installed."""
    here = Path(__file__).resolve().parent.parent
    for candidate in (here / "model_repository", here.parent.parent / "model_repository"):
        if (candidate / DETECTOR / "config.pbtxt").is_file():
            return candidate
    raise CommandError(
        f"the YOLOX model repository is missing from this installation ({here}); install pinstream again"
    )


def import_steps() -> None:
    """Make `yolox_steps`, which lies with the ensemble and not in a package of ours, importable."""
    directory = str(service_repository() / "yolox" / "1")
    if directory not in sys.path:
        sys.path.append(directory)
