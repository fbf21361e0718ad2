"""How `pinstream doctor` ends where its report cannot be written, and what it says of ports that somebody has."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstream_cli.triton.endpoints import Endpoints
from tests.unit.cli.test_doctor import free_ports, report, run

DOCTOR = [sys.executable, "-m", "pinstream_cli", "doctor"]
# 64 KiB of a pipe hold a report: what is written after its reader has gone is what counts.
GONE = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_report_that_has_no_room_is_one_line_and_a_code_of_its_own(form: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*DOCTOR, *form], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the report cannot be written: No space left on device; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("more", "code"), [([], 0), (["--json", "--model-repository", "/nonexistent"], 1)])
def test_where_nobody_reads_any_more_the_code_is_still_what_was_found(more: list[str], code: int) -> None:
    command = [sys.executable, "-c", GONE, *DOCTOR, *free_ports(), *more]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_names_of_any_bytes_are_told(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/m\xff")
    assert "model m" in run("--model-repository", tmp_path).stdout
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [*DOCTOR, "--model-repository", str(tmp_path)]
    done = subprocess.run(command, env=strict, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


class _Application(http.server.BaseHTTPRequestHandler):
    """Says of itself what Triton says, less what only Triton has."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"name": "triton", "version": "1", "extensions": []}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def application() -> Iterator[int]:
    """The port of some HTTP server that is no Triton."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Application) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_another_http_server_is_told_from_triton_and_named(application: int) -> None:
    code, checks = report("--http-port", str(application))
    assert code == 1
    check = checks["machine", f"port {application} (HTTP)"]
    assert check["status"] == "FIX"
    name = Path("/proc/self/comm").read_text().strip()
    assert check["found"].endswith(f"{name} listens there")


@pytest.mark.parametrize(
    "says", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", b"\0" * 70_000]
)
def test_a_port_of_somebody_who_speaks_no_http_is_told(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(says)

        threading.Thread(target=answer, daemon=True).start()
        port = listening.getsockname()[1]
        code, checks = report("--http-port", str(port))
    assert code == 1
    assert checks["machine", f"port {port} (HTTP)"]["status"] == "FIX"


def test_a_host_that_is_none_is_told() -> None:
    code, checks = report("--host", "two words")
    assert code == 1
    hosts = [check for (area, name), check in checks.items() if area == "machine" and name.startswith("port ")]
    assert [check["found"].partition(":")[0] for check in hosts] == ["--host two words cannot be looked up"] * 3


def test_a_port_for_two_purposes_is_told() -> None:
    free = str(Endpoints.free().http)
    code, checks = report("--http-port", free, "--grpc-port", free)
    assert code == 1
    assert checks["machine", f"port {free} (gRPC)"]["found"] == "is given for HTTP too"


def test_a_repository_that_leads_in_circles_is_told(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    code, checks = report("--model-repository", tmp_path / "circle")
    assert code == 1
    assert [check["status"] for (area, _), check in checks.items() if "circle" in area] == ["FIX"]
