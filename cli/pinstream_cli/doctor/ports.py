"""Are the ports free, or a running Triton's? Whoever else listens there is named."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.access import API_HEADER
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.preflight import check_ports

AREA = "machine"
TRITON = "tritonserver"
# Listen for processes of other containers, which are not seen from here; "" is whoever another user runs.
FORWARDERS = ("", "docker-proxy", "rootlesskit", "rootlessport")
LISTENING = "0A"
PROC = Path("/proc")
# The most of an answer that is read.
ANSWER_BYTES = 1 << 16


def check_free_ports(endpoints: Endpoints) -> Iterator[Check]:
    """Each port that a server is to listen on."""
    given: dict[int, str] = {}
    for purpose, option, port in (
        ("HTTP", "--http-port", endpoints.http),
        ("gRPC", "--grpc-port", endpoints.grpc),
        ("metrics", "--metrics-port", endpoints.metrics),
    ):
        name = f"port {port} ({purpose})"
        if port in given:
            yield Check(AREA, name, "FIX", f"is given for {given[port]} too", f"choose another with {option}")
            continue
        given[port] = purpose
        try:
            check_ports(endpoints.host, {purpose: (option, port)})
            yield Check(AREA, name, "OK", f"free on {endpoints.host}")
        except CommandError as error:
            found, _, remedy = str(error).partition("; ")
            listener = _listener(port)
            triton = _running_triton(endpoints)
            if listener == TRITON or (listener in FORWARDERS and triton):
                yield Check(AREA, name, "OK", f"taken, {triton or TRITON} is running here")
            else:
                yield Check(AREA, name, "FIX", found + (f", {listener} listens there" if listener else ""), remedy)


def _listener(port: int) -> str:
    """The name of the process that listens on a TCP port; empty where nobody is seen to."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for link in PROC.glob("[0-9]*/fd/*") if sockets else ():
        # Processes end, and those of other users show nothing.
        with contextlib.suppress(OSError):
            if os.readlink(link) in sockets:
                return (link.parents[1] / "comm").read_text().strip()
    return ""


def _inodes(port: int) -> Iterator[str]:
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / table).read_text().splitlines()[1:]:
                # sl, local address, remote address, state, queues, timers, retransmits, uid, timeout, inode
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    yield inode


def _running_triton(endpoints: Endpoints) -> str:
    """Says which Triton answers at the HTTP port already; empty where none does."""
    try:
        with urllib.request.urlopen(f"http://{endpoints.http_url}/v2", timeout=2) as answer:
            said = json.loads(answer.read(ANSWER_BYTES))
            # Its name is whatever --server-id says.
            return f"{said['name']} {said['version']}" if "model_repository" in said["extensions"] else ""
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            return "Triton with keys" if API_HEADER.encode() in error.read(ANSWER_BYTES) else ""
    # Whoever speaks something else than HTTP ends it with an HTTPException.
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        pass
    return ""
