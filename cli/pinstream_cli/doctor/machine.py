"""What Triton takes of this machine: /dev/shm, temporary files, ports, cores, file descriptors."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.ports import check_free_ports
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.awake import cpu_limit
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.preflight import (
    MIB,
    SHARED_MEMORY,
    check_temporary_files,
    check_writable_shared_memory,
    free_shared_memory,
    in_words,
    remedy_of,
)
from pinstream_cli.triton.repository import ReadOnnx
from pinstream_cli.triton.shared_memory import needs

AREA = "machine"
# Of temporary files: the log takes up to 64 MiB, and a library and the models' Python code a few.
LEAST_TEMPORARY = 128 * MIB


@dataclass(frozen=True)
class Limit:
    """One of the shell's ulimits.

    Attributes:
        name: What is limited.
        number: Of the resource.
        option: Of ulimit.
        least: What a server needs; 0 where it wants no limit.
        why: What it is needed for.
    """

    name: str
    number: int
    option: str
    least: int
    why: str


LIMITS = (
    Limit("open files", resource.RLIMIT_NOFILE, "-n", 4096, "every connection takes one"),
    Limit("processes and threads", resource.RLIMIT_NPROC, "-u", 1024, "Triton starts about a hundred threads"),
    Limit("address space", resource.RLIMIT_AS, "-v", 0, "CUDA reserves far more than it uses"),
    Limit("file size", resource.RLIMIT_FSIZE, "-f", 0, "plans and caches are files of any size"),
)


def check_machine(
    endpoints: Endpoints, repositories: Sequence[Path], gpus: int, read_onnx: ReadOnnx
) -> Iterator[Check]:
    """/dev/shm against what the repositories need, temporary files, the ports, cores, and the limits of this shell."""
    yield from _shared_memory(repositories, gpus, read_onnx)
    yield _temporary_files()
    yield from check_free_ports(endpoints)
    yield _cores()
    yield from _limits()


def _shared_memory(repositories: Sequence[Path], gpus: int, read_onnx: ReadOnnx) -> Iterator[Check]:
    models = needs(repositories, gpus, read_onnx)
    for model in models:
        yield Check(AREA, f"{SHARED_MEMORY} for {model.name}", "OK", str(model).partition(": ")[2])
        if model.left:
            yield Check(AREA, f"{SHARED_MEMORY} for places of {model.name}", "OK", model.places)
    try:
        check_writable_shared_memory()
    except CommandError as error:
        yield _unfit(str(SHARED_MEMORY), error)
        return
    needed, free = sum(model.needed for model in models), free_shared_memory()
    found = f"{free / MIB:.0f} MiB free" + (f", {in_words(needed)} needed" if models else "")
    if free >= needed:
        yield Check(AREA, str(SHARED_MEMORY), "OK", found)
        return
    yield Check(AREA, str(SHARED_MEMORY), "FIX", found, remedy_of(needed))


def _temporary_files() -> Check:
    """Where `serve` puts together what Triton reads and runs, and its log."""
    name = "temporary files"
    try:
        place = check_temporary_files()
    except CommandError as error:
        return _unfit(name, error)
    free = shutil.disk_usage(place).free
    found = f"{place}, {free / MIB:.0f} MiB free"
    if free < LEAST_TEMPORARY:
        return Check(AREA, name, "WARN", found, "make room there, or set TMPDIR to another directory")
    return Check(AREA, name, "OK", found)


def _cores() -> Check:
    found = str(len(os.sched_getaffinity(0)))
    if limit := cpu_limit():
        # Every one of them gets processes, which are all held back once the share is used up.
        remedy = "give the container whole cores (docker: --cpuset-cpus, not --cpus)"
        return Check(AREA, "cores", "WARN", f"{found}, of whose time only a share is had: {limit}", remedy)
    return Check(AREA, "cores", "OK", found)


def _unfit(name: str, error: CommandError) -> Check:
    found, _, remedy = str(error).partition("; ")
    return Check(AREA, name, "FIX", found, remedy)


def _limits() -> Iterator[Check]:
    for limit in LIMITS:
        soft, hard = resource.getrlimit(limit.number)
        if limit.number == resource.RLIMIT_NOFILE:  # `serve` takes all there may be
            soft = hard
        found = "unlimited" if soft == resource.RLIM_INFINITY else f"up to {soft}"
        if soft == resource.RLIM_INFINITY or (limit.least and soft >= limit.least):
            yield Check(AREA, limit.name, "OK", found)
            continue
        remedy = f"ulimit {limit.option} {limit.least or 'unlimited'}"
        if hard != resource.RLIM_INFINITY and (not limit.least or hard < limit.least):
            remedy += " as root, in /etc/security/limits.conf, or docker run --ulimit"
        yield Check(AREA, limit.name, "WARN", f"{found}; {limit.why}", remedy)
