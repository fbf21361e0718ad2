"""What the processes of a server hold, and whether that grows."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path

from pinstream_cli.triton.install import MALLOC
from tests.processes import Family, family
from tests.server.serve_process import SHM, Serve, left_behind

# From the first quarter of a run to its last: what grows by more than so many, be they MiB, threads or files, leaks; of
# MiB, and of the stubs' files, this share more.
GROWTH, SLACK = 0.05, 2.0
# A context takes gigabytes of the GPU's memory, so that a share of it says little. It was the same to 2 MiB.
GPU_SLACK = 32.0
# What malloc's arenas may come to.
ARENAS_MIB = 4.0 * int(MALLOC["MALLOC_ARENA_MAX"])


def measure(serve: Serve, instances: int, engines: int, patience_s: float) -> dict[str, float] | None:
    """What the server, its stubs and its engine's process hold.

    Of a version before some may be about to end, so that it waits until there are as many stubs and engines as there
    should be, and all of them for as long as it takes to measure.

    Args:
        serve: That of which everything counts.
        instances: How many stubs there should be.
        engines: How many processes of an engine there should be.
        patience_s: How long it waits, in seconds.

    Returns:
        MiB resident, threads and open files; MiB of /dev/shm. None where it has waited in vain.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = family(serve)
        if (len(found.stubs), len(found.engines)) == (instances, engines) and (sample := _sample(found)):
            regions = [region.stat().st_size for region in left_behind(serve)]
            return {**sample, "shm_mib": round(sum(regions) / (1 << 20), 1), "regions": len(regions)}
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def _sample(found: Family) -> dict[str, float]:
    """What its processes hold; nothing where one of them has just ended."""
    sample: dict[str, float] = {}
    for prefix, processes in (("", [found.server]), ("stubs_", found.stubs), ("engines_", found.engines)):
        for process in processes:
            held = _held(process.pid)
            if not held:
                return {}
            for name, value in held.items():
                sample[prefix + name] = sample.get(prefix + name, 0) + value
    return sample


def gpu_memory() -> dict[str, float]:
    """What is in use of the GPU's memory, by whomever."""
    from pinstream import cuda

    return {"gpu_mib": round(cuda.memory_used() / (1 << 20), 1)}


def _held(pid: int) -> dict[str, float]:
    process = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        files = _files(process / "fd")
        resident_kib = int(status["VmRSS"].split()[0])
    except (OSError, KeyError):  # it has just ended, and nobody has waited for it yet
        return {}
    return {"resident_mib": round(resident_kib / 1024, 1), "threads": int(status["Threads"]), "files": files}


def _files(descriptors: Path) -> int:
    """How many files are open, of regions in shared memory those that are gone, and what is open more than once.

    A detector opens the places of a first step's pictures once, when it first meets one of them: how many it has met
    since its version was loaded is chance.
    """
    names = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            names.append(str(descriptor.readlink()))
    there = {name for name in names if name.startswith(f"{SHM}/") and not name.endswith(" (deleted)")}
    return len(names) - len(there)


def growth(samples: list[dict[str, float]], per_version: float) -> list[str]:
    """What of the samples, one a new version, has grown by more than it may.

    Args:
        samples: Of `measure`.
        per_version: MiB by which tritonserver may grow with each, up to ARENAS_MIB in all.
    """
    quarter = max(1, len(samples) // 4)
    faults = []
    for name in samples[0] if samples else ():
        # What others hold of the GPU counts as well, and a server beside may have two versions just then.
        typical = min if name == "gpu_mib" else statistics.median
        first, last = (typical([s[name] for s in part]) for part in (samples[:quarter], samples[-quarter:]))
        versions = len(samples) - quarter if name == "resident_mib" else 0
        # A new process inherits what files Triton has open just then, which are a few more or less.
        share = GROWTH if name.endswith("mib") or name == "stubs_files" else 0.0
        room = GPU_SLACK if name == "gpu_mib" else first * share + SLACK + min(versions * per_version, ARENAS_MIB)
        if last > first + room:
            faults.append(f"{name} grows: {first} at first, {last} at last")
    return faults
