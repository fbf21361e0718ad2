"""`pinstream doctor` beside a running server, and what it says of models held against what Triton does with them."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pinstream_cli.doctor import doctor
from pinstream_client import Model, PinstreamError
from tests.odd_models import ODD_MODELS
from tests.server.running import Running, running


def test_ports_that_a_triton_has_are_in_order(plain: Running) -> None:
    ports = plain.endpoints
    arguments = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
    result = CliRunner().invoke(doctor, [*arguments, "--json"])
    assert result.exit_code == 0, result.stdout
    found = {check["name"]: check["found"] for check in json.loads(result.stdout)["checks"]}
    assert found[f"port {ports.grpc} (gRPC)"].startswith("taken, triton 2.")


def test_triton_serves_what_doctor_finds_fit_and_refuses_the_rest(tmp_path: Path) -> None:
    # What doctor says of each is in tests/unit/cli/test_doctor_odd.py.
    odd_models = [odd for odd in ODD_MODELS if not odd.stops]
    for odd in odd_models:
        odd.write(tmp_path)
    with running(repositories=[tmp_path], extra=["--exit-on-error=false", "--strict-readiness=false"]) as server:
        ask = urllib.request.Request(f"http://{server.http_url}/v2/repository/index", b"{}")
        with urllib.request.urlopen(ask, timeout=10) as answer:
            states = [(model["name"], model.get("state")) for model in json.load(answer)]
        loaded = {name for name, state in states if state == "READY"}
        loaded -= {name for name, state in states if state != "READY"}
        assert loaded == {odd.name for odd in odd_models if not odd.words or not odd.answers}
        for odd in odd_models:
            if not odd.answers:
                with pytest.raises(PinstreamError), Model(f"grpc://{server.grpc_url}", odd.name, timeout=1) as model:
                    model.infer({"a": np.zeros((1, 4), np.float32)})
