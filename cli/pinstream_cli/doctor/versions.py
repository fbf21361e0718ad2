"""Are Triton, its Python stub and the packages there, and do they go together?"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pinstream.engines.flavour import load_flavour
from pinstream.errors import ModelFileError
from pinstream_cli.doctor.check import Check
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.install import TritonInstall, find_triton

AREA = "versions"
PYTHONS = ((3, 10), (3, 12))
STARTS_WITHIN_S = 30.0
# In the table that Triton prints: "| server_version | 2.51.0 |".
SERVER_VERSION = re.compile(r"server_version\s*\|\s*(\S+)")
SERVER_EXTRA = 'pip install "pinstream[server]"'


def check_versions(tritonserver: Path | None, gpus: int) -> Iterator[Check]:
    """Versions of all that takes part in serving.

    Args:
        tritonserver: The binary that the user names, if any.
        gpus: GPUs of this machine; without one no TensorRT is wanted.
    """
    yield _package("pinstream", "")
    yield _python()
    install = _install(tritonserver)
    if isinstance(install, Check):
        yield install
    else:
        yield Check(AREA, "Triton", "OK", f"{_triton_version(install)}, {install.binary}")
        yield Check(AREA, "Python stub", "OK", f"for Python {sys.version_info.major}.{sys.version_info.minor}")
        yield _numpy(from_wheel=_is_wheel(install))
    yield _package("tritonclient", "pip install pinstream")
    yield _package("onnxruntime", SERVER_EXTRA)
    yield _package("opencv-python-headless", SERVER_EXTRA)
    yield _tensorrt(gpus)


def _python() -> Check:
    found = platform.python_version()
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check(AREA, "Python", "OK", found)
    return Check(AREA, "Python", "FIX", found, f"use Python {oldest} to {newest}")


def _install(named: Path | None) -> TritonInstall | Check:
    try:
        return find_triton(named)
    except CommandError as error:
        return Check(AREA, "Triton", "FIX", str(error), SERVER_EXTRA)


def _is_wheel(install: TritonInstall) -> bool:
    return install.stub.parent.parent.name == "python_backend_stubs"


def _triton_version(install: TritonInstall) -> str:
    """What the server says of itself as it starts, which it does not get far with, and the wheel that it came in."""
    nothing = ["--model-repository=/nonexistent", "--model-control-mode=explicit", "--load-model=none"]
    listening = ["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"]
    try:
        done = subprocess.run(
            [install.binary, *nothing, *listening],
            env=install.environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STARTS_WITHIN_S,
            check=False,
        )
        found = SERVER_VERSION.search(done.stdout + done.stderr)
    except (OSError, subprocess.TimeoutExpired):
        found = None
    version = found[1] if found else "of an unknown version"
    return f"{version} of nvidia-pytriton {_version('nvidia-pytriton')}" if _is_wheel(install) else version


def _numpy(*, from_wheel: bool) -> Check:
    found = _version("numpy") or "missing"
    if from_wheel and not found.startswith("1."):
        why = "the stub of nvidia-pytriton sends empty outputs with NumPy 2"
        return Check(AREA, "numpy", "FIX", f"{found}; {why}", 'pip install "numpy<2" "opencv-python-headless<4.12"')
    return Check(AREA, "numpy", "OK", found)


def _tensorrt(gpus: int) -> Check:
    try:
        return Check(AREA, "TensorRT", "OK", str(load_flavour()))
    except ModelFileError as error:
        if gpus:
            return Check(AREA, "TensorRT", "WARN", str(error), "without it models run on the CPU, with ONNX Runtime")
        return Check(AREA, "TensorRT", "OK", "none, and no GPU: models run on the CPU, with ONNX Runtime")


def _package(name: str, remedy: str) -> Check:
    found = _version(name)
    return Check(AREA, name, "OK", found) if found else Check(AREA, name, "FIX", "not installed", remedy)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
