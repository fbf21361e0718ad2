"""What Triton takes of this machine: /dev/shm, ports, file descriptors."""

from __future__ import annotations

import json
import resource
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.preflight import MIB, SHARED_MEMORY, check_ports, free_shared_memory
from pinstream_cli.triton.shared_memory import needs

AREA = "machine"
# Every connection takes one; the models and stubs take some hundreds.
FEW_FILES = 4096


def check_machine(endpoints: Endpoints, repositories: Sequence[Path], gpus: int) -> Iterator[Check]:
    """/dev/shm against what the repositories need, the ports, and the limits of this shell."""
    yield from _shared_memory(repositories, gpus)
    yield from _ports(endpoints)
    yield _files()


def _shared_memory(repositories: Sequence[Path], gpus: int) -> Iterator[Check]:
    models = needs(repositories, gpus)
    for model in models:
        yield Check(AREA, f"{SHARED_MEMORY} for {model.name}", "OK", str(model).partition(": ")[2])
    needed, free = sum(model.needed for model in models), free_shared_memory()
    found = f"{free / MIB:.0f} MiB free" + (f", {needed / MIB:.0f} MiB needed" if models else "")
    if free >= needed:
        yield Check(AREA, str(SHARED_MEMORY), "OK", found)
        return
    size = f"{-(-needed // MIB) * 2}m"
    remedy = f"docker run --shm-size={size}, or mount -o remount,size={size} {SHARED_MEMORY}, or lower max_batch_size"
    yield Check(AREA, str(SHARED_MEMORY), "FIX", found, remedy)


def _ports(endpoints: Endpoints) -> Iterator[Check]:
    running = _running_triton(endpoints)
    for purpose, option, port in (
        ("HTTP", "--http-port", endpoints.http),
        ("gRPC", "--grpc-port", endpoints.grpc),
        ("metrics", "--metrics-port", endpoints.metrics),
    ):
        try:
            check_ports(endpoints.host, {purpose: (option, port)})
            yield Check(AREA, f"port {port} ({purpose})", "OK", f"free on {endpoints.host}")
        except CommandError as error:
            if running:
                yield Check(AREA, f"port {port} ({purpose})", "OK", f"taken, {running}")
            else:
                found, _, remedy = str(error).partition("; ")
                yield Check(AREA, f"port {port} ({purpose})", "FIX", found, remedy)


def _running_triton(endpoints: Endpoints) -> str:
    """Says which Triton answers at the HTTP port already; empty where none does."""
    try:
        with urllib.request.urlopen(f"http://{endpoints.http_url}/v2", timeout=2) as answer:
            said = json.load(answer)
            return f"{said['name']} {said['version']} is running here"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return Check(AREA, "open files", "OK", f"up to {soft}")
    remedy = f"ulimit -n {FEW_FILES if hard == resource.RLIM_INFINITY or hard >= FEW_FILES else hard}"
    return Check(AREA, "open files", "WARN", f"up to {soft}; every connection takes one", remedy)
