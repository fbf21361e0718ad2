"""What ends while Triton polls its repositories and a model takes its time to load there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton.server import LONGEST_STOP_S
from tests.fuzz.documented import documented_in
from tests.server.conftest import add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_restart import seconds_until, stubs_of
from tests.server.test_stopping import NOBODY_LISTENS

READY = "/v2/models/slow/ready"
CONFIG = """backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
MODEL = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

def take(step, seconds):
    Path(__file__).with_name(step).touch()
    time.sleep(seconds)

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        take("complete", {complete_s})
        return config

    def initialize(self, args):
        take("initialize", {initialize_s})

    def execute(self, requests):
        # Not beside this file, where Triton would take it for a change of the model.
        Path(__file__).parents[2].joinpath("executing").touch()
        time.sleep(3)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy())])
            for r in requests
        ]
"""
# Longer than a stop may take.
LOAD_S = LONGEST_STOP_S + 20
# As docs/errors.md has it, of a death and of a SIGTERM.
DEAD_S, ASKED_S = 5, 8


def ask(serve: Serve, number: float) -> float:
    tensor = grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.full(1, number, np.float32))
    with grpc.InferenceServerClient(serve.grpc_url) as client:
        return float(client.infer("slow", [tensor], client_timeout=60).as_numpy("y")[0])


def words_of(stub: int) -> list[str]:
    """What a process was started with; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{stub}/cmdline").read_text().split("\0")
    return []


def completes(stub: int) -> bool:
    """Whether it only completes the configuration: it has the model's name where others have that of their instance."""
    return words_of(stub)[8:9] in ([], ["slow"])


def stub_of(serve: Serve, version: int) -> int | None:
    """The newest process of a version; while it is loaded first one that completes its configuration, then another.

    Of version 1 there may be an older one for a moment: Triton's first poll may load it again, and then ends that one.
    """
    for stub in sorted(stubs_of(serve), reverse=True):
        if any(f"/slow/{version}/" in word for word in words_of(stub)):
            return stub
    return None


@pytest.fixture
def polling(start: Callable[..., Serve], tmp_path: Path, request: pytest.FixtureRequest) -> Serve:
    """Serves version 1, and has just begun to load version 2, one step of which takes its time."""
    seconds = {"complete_s": 0.0, "initialize_s": 0.0}
    file = add_model(tmp_path, "slow", CONFIG).with_name("model.py")
    file.write_text(MODEL.format(**seconds))
    options = ("--model-control-mode=poll", "--repository-poll-secs=1", "--restart")
    serve = start("--model-repository", tmp_path, *options)
    serve.wait_for("Stop with Ctrl-C")
    later = tmp_path / "slow" / "2"
    later.mkdir()
    (later / "model.py").write_text(MODEL.format(**{**seconds, getattr(request, "param", "initialize_s"): LOAD_S}))
    seconds_until(lambda: stub_of(serve, 2) is not None, 30)
    return serve


def wait_for_step(tmp_path: Path, step: str) -> None:
    seconds_until((tmp_path / "slow" / "2" / step).exists, 30)


@pytest.mark.parametrize("moment", ["completed", "launched", "initialized"])
def test_a_load_does_not_keep_the_server_from_ending(polling: Serve, tmp_path: Path, moment: str) -> None:
    """Triton 2.51 looks for a signal between two polls only, and would serve on until it is killed."""
    if moment == "launched":
        seconds_until(lambda: (stub := stub_of(polling, 2)) is not None and not completes(stub), 30)
    elif moment == "initialized":
        wait_for_step(tmp_path, "initialize")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, polling, 7)
        seconds_until((tmp_path / "executing").exists, 10)
        polling.process.terminate()
        seconds_until(lambda: not ready(polling.endpoints, READY), ASKED_S)
        with pytest.raises(InferenceServerException) as refused:
            # On a busy machine it may have been the asking for READY that took too long.
            seconds_until(lambda: ask(polling, 8) != 8, ASKED_S)
        said = refused.value.message()
        assert NOBODY_LISTENS.search(said) or documented_in(said), said
        assert call.result() == 7
    assert polling.end(LONGEST_STOP_S / 2) == 0
    assert not left_behind(polling)


@pytest.mark.parametrize(
    ("polling", "step"), [("initialize_s", "initialize"), ("complete_s", "complete")], indirect=["polling"]
)
def test_the_death_of_what_is_served_is_told_in_time(polling: Serve, tmp_path: Path, step: str) -> None:
    """Also where Triton would not take it for a failed load that the process which loads is killed."""
    wait_for_step(tmp_path, step)
    served = stub_of(polling, 1)
    assert served is not None
    os.kill(served, signal.SIGKILL)
    seconds_until(lambda: not ready(polling.endpoints, READY), DEAD_S)
    polling.wait_for("RESTART")
