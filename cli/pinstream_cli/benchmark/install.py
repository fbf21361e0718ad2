"""Where perf_analyzer comes from: the environment's, PATH's, or the one in a tritonclient wheel, fetched once."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pinstream_cli.errors import CommandError

ENVIRONMENT = "PERF_ANALYZER"
# The last tritonclient whose perf_analyzer runs on glibc 2.35 (Ubuntu 22.04, Debian 12). It cannot be installed beside
# a newer tritonclient, and it is of the same age as the server in the nvidia-pytriton wheel.
VERSION = "2.51.0"
HASHES = (
    "sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",  # x86_64
    "sha256:ee6f5a508409f6c95069f4d77d34e97bef84fb4a1aedb5d82ad0ad311ad128d5",  # aarch64
)
# Libraries it wants and few machines have; the nvidia-pytriton wheel carries them.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
# "Perf Analyzer Version 2.51.0 (commit unknown)"; a build that was told no version leaves it empty.
_SAID_VERSION = re.compile(r"Perf Analyzer Version *([^\s(]*)")


@dataclass(frozen=True)
class Tool:
    """A perf_analyzer that runs.

    Attributes:
        command: How to call it; arguments follow.
        version: Its own, as in "2.51.0". Where it tells none: that of the wheel that it is from, else the first twelve
            digits of its SHA-256.
    """

    command: tuple[str, ...]
    version: str


def find_perf_analyzer(notice: Callable[[str], None]) -> Tool:
    """Find perf_analyzer, or install one.

    Args:
        notice: Told in one line before something is downloaded.

    Raises:
        CommandError: There is none that runs, and none could be installed.
    """
    named = os.environ.get(ENVIRONMENT, "")
    if named.strip():
        return _checked(shlex.split(named), f"{ENVIRONMENT}={named}")
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return _checked([on_path], f"{on_path}, which is on PATH,")
    place = cache_directory() / VERSION
    if not (place / "perf_analyzer").is_file():
        notice(f"Fetching perf_analyzer {VERSION} (14 MB, once) into {place}")
        install(place)
    return _checked(["env", f"LD_LIBRARY_PATH={place / 'lib'}", str(place / "perf_analyzer")], str(place))


def cache_directory() -> Path:
    """Where perf_analyzers are kept, one directory a version."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pinstream" / "perf_analyzer"


def install(place: Path) -> None:
    """Take perf_analyzer out of its wheel and put it into `place` with the libraries it wants.

    Raises:
        CommandError: pip could not fetch the wheel, or a library is missing.
    """
    libraries = _wanted_libraries()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".install-", dir=place.parent) as scratch:
        wheel = Path(scratch) / "wheel"
        _pip_install(wheel)
        ready = Path(scratch) / "ready"
        (ready / "lib").mkdir(parents=True)
        for source in (wheel / "bin" / "perf_analyzer", wheel / "LICENSE.txt"):
            if source.is_file():
                shutil.move(source, ready / source.name)
        (ready / "perf_analyzer").chmod(0o755)
        for name, source in libraries.items():
            # Copies: the environment that they come from may be gone before the cache is.
            shutil.copyfile(source, ready / "lib" / name)
        if not place.exists():  # else somebody else was faster
            ready.rename(place)


def _pip_install(target: Path) -> None:
    requirement = target.with_suffix(".txt")
    requirement.write_text(" ".join([f"tritonclient=={VERSION}", *(f"--hash={h}" for h in HASHES)]))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(target)]
    done = subprocess.run([*pip, "install", *options, "-r", str(requirement)], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise CommandError(
            f"perf_analyzer {VERSION} could not be fetched with pip: {why}; put a perf_analyzer on PATH, or name one "
            f"with the environment variable {ENVIRONMENT}"
        )


def _wanted_libraries() -> dict[str, Path]:
    wheel = importlib.util.find_spec("pytriton")
    beside = Path(wheel.origin).parent.parent / "nvidia_pytriton.libs" if wheel and wheel.origin else None
    found = {}
    for name, pattern in LIBRARIES.items():
        matches = sorted(beside.glob(pattern)) if beside else []
        if not matches:
            raise CommandError(
                f"{name}, which perf_analyzer {VERSION} needs, is not here: it comes with the nvidia-pytriton package "
                f'(pip install "pinstream[server]"); or name a perf_analyzer that runs with {ENVIRONMENT}'
            )
        found[name] = matches[0]
    return found


def _checked(command: Sequence[str], where: str) -> Tool:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30)
        said = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    version = _SAID_VERSION.search(said)
    if version is None:
        why = (said.strip().splitlines() or ["it prints no version"])[-1]
        raise CommandError(f"{where} is no perf_analyzer that runs here: {why}")
    return Tool(tuple(command), version[1] or _version_of_file(command))


def _version_of_file(command: Sequence[str]) -> str:
    """What tells a program from others that tells no version: the wheel that has a file of its content, or its hash."""
    found = (word if Path(word).is_file() else shutil.which(word) for word in reversed(command))
    file = next((Path(path).resolve() for path in found if path), None)
    if file is None:
        return "unknown"
    digest = hashlib.sha256(file.read_bytes()).digest()
    recorded = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    prefix = file.parent.parent
    places = [*sys.path, str(prefix), *map(str, prefix.glob("lib/python*/*-packages"))]
    for wheel in metadata.distributions(path=places):
        for entry in wheel.files or ():
            if entry.name == file.name and entry.hash is not None and entry.hash.value == recorded:
                return wheel.version
    return f"sha256:{digest.hex()[:12]}"
