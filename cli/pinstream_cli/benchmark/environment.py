"""Where and with what a measurement was made: machine, commit, versions."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pinstream.engines.flavour import load_flavour
from pinstream.errors import ModelFileError

PACKAGES = (
    "onnxruntime",
    "numpy",
    "opencv-python-headless",
    "nvidia-pytriton",
    "torch",  # of a peer
)
# TensorRT is one of these, by its CUDA.
TENSORRT_PACKAGES = (
    "tensorrt",
    "tensorrt_cu12",
    "tensorrt_cu13",
    "tensorrt_rtx",
    "tensorrt_rtx_cu12_bindings",
    "tensorrt_rtx_cu13_bindings",
)
COMMIT = "PINSTREAM_COMMIT"
ROOT = Path(__file__).resolve().parents[3]
_VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)


def machine() -> dict[str, Any]:
    """The machine in a few words and numbers: CPU, cores, memory, GPUs, operating system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "gpus": _gpus(),
        "os": f"{_os_name()}, Linux {platform.release()}",
        "python": platform.python_version(),
    }


def origin(how: str) -> dict[str, Any]:
    """What every result says of itself: the command that made it, when, of which commit and on which machine.

    Args:
        how: The command.
    """
    return {
        "command": how,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
    }


def versions(**more: str) -> dict[str, str]:
    """Versions of what takes part; `more` are those that only others know, such as the server's."""
    tensorrt = _installed(TENSORRT_PACKAGES) or _imported_tensorrt()
    return {"pinstream": _own_version()} | _installed(PACKAGES) | tensorrt | more


def commit() -> str:
    """The checkout's commit, with "-dirty" where tracked files of it have changed; "unknown" outside a checkout.

    A copy of a checkout that has no history is told by the environment variable PINSTREAM_COMMIT.
    """
    if named := os.environ.get(COMMIT):
        return named
    try:
        head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
        changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def results_directory() -> Path | None:
    """benchmarks/results of the checkout that this runs from; None for an installed package."""
    directory = ROOT / "benchmarks" / "results"
    return directory if (ROOT / "pyproject.toml").is_file() and directory.is_dir() else None


def _own_version() -> str:
    """As it is installed, else as the checkout has it."""
    try:
        return metadata.version("pinstream")
    except metadata.PackageNotFoundError:
        project = ROOT / "pyproject.toml"
        found = _VERSION.search(project.read_text()) if project.is_file() else None
        return found[1] if found else "unknown"


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _imported_tensorrt() -> dict[str, str]:
    """TensorRT as its module has it, where it is none that pip installed; nothing where there is none."""
    try:
        flavour = load_flavour()
    except ModelFileError:
        return {}
    return {flavour.name: flavour.version}


# Where a file of a command lies on the machine that measured: nothing of it means anything elsewhere.
_DIRECTORIES = re.compile(r"(?<![^=,:])(?:/|(?:\.\./)+)(?:[^/,]+/)*(?=[^/,])")


def command(words: Sequence[str]) -> str:
    """A command line as a result keeps it: of files at absolute paths and above the working directory, the names alone.

    Args:
        words: The program and its arguments. A path is a word, follows `--option=`, or is one of several with commas.
    """
    return shlex.join(without_directories(word) for word in words)


def without_directories(word: str) -> str:
    """A word of a command line as a result keeps it, or what is said of a file in one."""
    return _DIRECTORIES.sub("", word) if "://" not in word else word


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
