"""The NVIDIA driver, the CUDA runtime and the GPUs, without taking any memory of theirs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from pinstream_cli.doctor.check import Check
from pinstream_cli.triton.preflight import DRIVER

AREA = "gpu"
QUERY = ("name", "compute_cap", "driver_version", "memory.free", "memory.total")
# The part of a GPU's memory under which another model may well not fit.
LITTLE_FREE = 0.1


def check_gpus() -> Iterator[Check]:
    """Driver, runtime, and each GPU with its memory."""
    rows = _nvidia_smi()
    if isinstance(rows, Check):
        yield rows
        return
    yield Check(AREA, "driver", "OK", rows[0][2])
    yield _runtime(len(rows))
    for index, (name, capability, _, free, total) in enumerate(rows):
        little = _number(free) < LITTLE_FREE * _number(total)
        found = f"{name}, compute capability {capability}, {free} MiB free of {total}"
        remedy = "see `nvidia-smi` for who holds it" if little else ""
        yield Check(AREA, f"GPU {index}", "WARN" if little else "OK", found, remedy)


def _nvidia_smi() -> list[list[str]] | Check:
    if shutil.which("nvidia-smi") is None:
        if DRIVER.is_dir():
            return Check(
                AREA, "driver", "WARN", "there, but without nvidia-smi", "in a container add the `utility` capability"
            )
        return Check(AREA, "driver", "OK", "no NVIDIA driver: models run on the CPU, with ONNX Runtime")
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stdout", "") or str(error)
        return Check(AREA, "driver", "FIX", f"nvidia-smi fails: {said.strip()}", "install the driver, or reboot")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    # It may say something beside them, or instead, and end with 0 all the same.
    gpus = [row for row in rows if len(row) == len(QUERY)]
    says = f" and says: {lines[0][:200]}" if lines else ""
    return gpus or Check(
        AREA, "driver", "WARN", f"nvidia-smi lists no GPU{says}", "in a container run it with --gpus all"
    )


def _runtime(gpus: int) -> Check:
    try:
        from pinstream import cuda
    except ImportError:
        return Check(AREA, "CUDA runtime", "FIX", "cuda-python is not installed", 'pip install "pinstream[gpu]"')
    usable = cuda.device_count()
    if usable == 0:
        advice = (
            "the driver is too old for this CUDA, or CUDA_VISIBLE_DEVICES hides the GPUs; compare with `nvidia-smi`"
        )
        return Check(AREA, "CUDA runtime", "FIX", f"finds none of {gpus} GPUs", advice)
    return Check(AREA, "CUDA runtime", "OK", f"{cuda.runtime_version()}, {usable} of {gpus} GPUs usable")


def _number(text: str) -> float:
    # "[N/A]" on GPUs that share the machine's memory.
    return float(text) if text.replace(".", "", 1).isdecimal() else float("inf")
