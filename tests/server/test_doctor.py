"""`pinstream doctor` beside a running server."""

from __future__ import annotations

import json

from click.testing import CliRunner

from pinstream_cli.doctor import doctor
from tests.server.running import Running


def test_ports_that_a_triton_has_are_in_order(plain: Running) -> None:
    ports = plain.endpoints
    arguments = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
    result = CliRunner().invoke(doctor, [*arguments, "--json"])
    assert result.exit_code == 0, result.stdout
    found = {check["name"]: check["found"] for check in json.loads(result.stdout)["checks"]}
    assert found[f"port {ports.grpc} (gRPC)"].startswith("taken, triton 2.")
