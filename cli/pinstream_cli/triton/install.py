"""Where tritonserver is, and the environment its Python stub needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from pinstream_cli.errors import CommandError

# Where the NGC container has it.
CONTAINER_ROOT = Path("/opt/tritonserver")
# Without the first three every decoded image is a fresh mmap, page-faulted anew: a third of the preprocessing time.
# With them each arena keeps the most that its threads ever had at once, so there are to be few: with a GPU each load of
# a model leaves 4 MiB in an arena that had none, and malloc would make eight for every core.
MALLOC = {
    "MALLOC_ARENA_MAX": "16",
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# Vertex AI sets it, and Triton then opens a port for that on all addresses, which asks for no keys and reaches every
# group of calls, in place of HTTP and gRPC.
OPENS_A_DOOR = "AIP_MODE"


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver with the parts of its Python backend.

    Attributes:
        binary: The tritonserver executable.
        python_backend: Directory with libtriton_python.so and triton_python_backend_utils.py.
        stub: The triton_python_backend_stub for the running Python.
    """

    binary: Path
    python_backend: Path
    stub: Path

    def environment(self) -> dict[str, str]:
        """The environment to start tritonserver with; its stubs inherit it."""
        env = {name: value for name, value in os.environ.items() if name != OPENS_A_DOOR}
        # The stub finds its packages through the python3 that is first on PATH, and ignores PYTHONPATH.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        # The stub links libpythonX.Y.so of the Python it belongs to, which may not be where the loader looks. Last: it
        # may be the system's own directory, and a container's own CUDA driver has to be found before the host's there.
        libraries = [env.get("LD_LIBRARY_PATH", ""), sysconfig.get_config_var("LIBDIR") or ""]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        return {**MALLOC, **env}


def find_triton(named: Path | None = None) -> TritonInstall:
    """Find tritonserver: the one named, else the nvidia-pytriton wheel's, else one on PATH or in /opt/tritonserver.

    Raises:
        CommandError: There is none, or it has no Python backend for the running Python.
    """
    if named is not None:
        return _from_binary(named)
    wheel = importlib.util.find_spec("pytriton")
    if wheel is not None and wheel.origin is not None:
        return _from_wheel(Path(wheel.origin).parent / "tritonserver")
    on_path = shutil.which("tritonserver") or str(CONTAINER_ROOT / "bin" / "tritonserver")
    if Path(on_path).is_file():
        return _from_binary(Path(on_path))
    raise CommandError(
        "no tritonserver found: neither the nvidia-pytriton package, nor on PATH, nor in /opt/tritonserver; "
        'run pip install "pinstream[server]", or name one with --tritonserver'
    )


def _from_binary(binary: Path) -> TritonInstall:
    binary = binary.resolve()
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise CommandError(f"--tritonserver {binary} is not an executable file; name the tritonserver binary itself")
    if (binary.parent.parent / "python_backend_stubs").is_dir():
        return _from_wheel(binary.parent.parent)
    backend = binary.parent.parent / "backends" / "python"
    return _checked(TritonInstall(binary, backend, backend / "triton_python_backend_stub"))


def _from_wheel(root: Path) -> TritonInstall:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        there = ", ".join(sorted(p.name for p in stub.parent.parent.glob("3.*")))
        raise CommandError(f"this is Python {version}, and nvidia-pytriton has stubs for {there}; use one of these")
    return _checked(TritonInstall(root / "bin" / "tritonserver", root / "backends" / "python", stub))


def _checked(install: TritonInstall) -> TritonInstall:
    for path in (install.binary, install.python_backend / "libtriton_python.so", install.stub):
        if not path.is_file():
            raise CommandError(f"{path} is missing from this Triton; install Triton with its Python backend")
    return install
