"""A process that ends because its model is unloaded has not died; else serve would start again for each new version."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from pinstream_cli.triton import stubs as module
from tests.server.conftest import add_model
from tests.server.running import running
from tests.server.test_restart import seconds_until

PATIENCE_S = 30
SLOW_TO_END = """
import pathlib, time
class TritonPythonModel:
    def execute(self, requests):
        return []
    def finalize(self):
        pathlib.Path(__file__).with_name("ending").touch()
        time.sleep(3)
"""


def test_what_ends_with_its_model_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    directory = add_model(tmp_path, "ending", 'backend: "python"\n').parent
    (directory / "model.py").write_text(SLOW_TO_END)
    with running(repositories=[tmp_path], extra=["--model-control-mode=explicit", "--load-model=*"]) as server:
        stubs = server.server.stubs

        def has_ended() -> bool:
            stubs.look()
            with monkeypatch.context() as at_once:
                at_once.setattr(module, "DEAD_S", 0.0)
                return stubs.dead() is not None

        with grpc.InferenceServerClient(server.grpc_url) as control:
            control.unload_model("ending")
        seconds_until((directory / "ending").exists, PATIENCE_S)
        # Triton takes some milliseconds until it has reaped it: it is stopped before its process has ended.
        os.kill(server.server.pid, signal.SIGSTOP)
        try:
            seconds_until(has_ended, PATIENCE_S)
            assert stubs.dead() is None
        finally:
            os.kill(server.server.pid, signal.SIGCONT)
        seconds_until(lambda: not has_ended(), PATIENCE_S)
        assert stubs.dead() is None
