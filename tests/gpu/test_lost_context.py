"""A sticky CUDA error, by a kernel that really writes to a wrong address: in one engine, and in a served model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.gpu.conftest import BuildPlan, lacking
from tests.gpu.serving import parameters, place
from tests.gpu.test_engine import FP32, pixels, reference
from tests.server.conftest import ONE_LINE
from tests.server.running import Reached, running
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_plain_models import infer
from tests.server.test_restart import seconds_until

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "lose_context.cu"
MEANING = "an illegal memory access was encountered"
ADVICE = "this process has lost its GPU context and must be restarted: load the model again, or restart the server"


@pytest.fixture
def trigger(tmp_path: Path) -> Path:
    """The file that makes the library write to a wrong address once it is there."""
    return tmp_path / "lose-the-context"


@pytest.fixture
def library(tmp_path: Path, trigger: Path) -> Path:
    """The compiled library."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        lacking("needs CUDA's compiler, nvcc")
    built = tmp_path / "liblose_context.so"
    command = [nvcc, "-arch=native", "-shared", "-Xcompiler", "-fPIC", f'-DTRIGGER="{trigger}"', "-o", built, SOURCE]
    subprocess.run([str(word) for word in command], check=True, timeout=120)
    return built


LOSE_THE_CONTEXT = """
import sys, time
import numpy as np
from pathlib import Path
from pinstream.batching import Request
from pinstream.engines import find_model_file, open_engine
from pinstream.loop import Loop
from pinstream.options import Options
plan, cache, library, trigger, memory = sys.argv[1:]
options = Options(cache_dir=cache, plugins=(library,), output_memory=memory)
engine = open_engine(find_model_file(Path(plan), options), options)
request = Request({"pixels": np.zeros((1, 3, 8, 8), np.float32)}, 1, frozenset({"probabilities"}))
assert Loop(engine).run([request])[0].error is None
assert engine.failure == ""
Path(trigger).touch()
deadline = time.monotonic() + 20
errors = set()
# Several batches at once: what the first have left on the GPU is lost with the last.
while not errors and time.monotonic() < deadline:
    errors = {str(answer.error) for answer in Loop(engine).run([request] * 9) if answer.error}
print(*errors)
for answer in Loop(engine).run([request] * 3):
    print(answer.error)
print(engine.failure)
engine.close()
"""


@pytest.mark.parametrize("memory", ["cpu", "gpu"])
def test_a_lost_context_is_said_by_every_answer_and_by_the_engine(
    build: BuildPlan, cache_dir: Path, tmp_path: Path, library: Path, trigger: Path, memory: str
) -> None:
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    done = subprocess.run(
        [sys.executable, "-c", LOSE_THE_CONTEXT, str(plan), str(cache_dir), str(library), str(trigger), memory],
        capture_output=True,
        text=True,
        cwd=ROOT / "backend",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("CUDA failed while ")
    assert "cudaErrorIllegalAddress" in lines[0]
    assert MEANING in lines[0]
    assert lines[0].endswith(ADVICE)
    assert lines[1:] == [lines[0]] * 4


def failure(server: Reached, model: str) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        infer(server, model, pixels=pixels(1))
    return caught.value


def lose(server: Reached, trigger: Path) -> InferenceServerException:
    """Let the model `struck` lose its context; gives the answer to the next request."""
    infer(server, "struck", pixels=pixels(1))
    trigger.touch()
    time.sleep(0.5)
    # What is loaded from now on stays whole.
    trigger.unlink()
    return failure(server, "struck")


def assert_served(server: Reached, model: str) -> None:
    got = infer(server, model, pixels=pixels(3)).as_numpy("probabilities")
    np.testing.assert_allclose(got, reference(pixels(3)), atol=FP32)


def test_a_served_model_that_lost_its_context_says_so_once_and_comes_back_when_loaded_again(
    build: BuildPlan, tmp_path: Path, library: Path, trigger: Path
) -> None:
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    repository = tmp_path / "repository"
    place(plan, repository, "struck", ONE_LINE + parameters(PLUGINS=str(library)))
    place(plan, repository, "neighbour")
    explicit = ["--model-control-mode=explicit", "--load-model=struck", "--load-model=neighbour"]
    with running(repositories=[repository], extra=explicit) as server:
        first = lose(server, trigger)
        assert first.status() == "StatusCode.UNAVAILABLE"
        assert MEANING in first.message()
        assert first.message().endswith(ADVICE)
        for _ in range(5):
            assert failure(server, "struck").message() == first.message()
        said = [line for line in server.console.getvalue().splitlines() if MEANING in line]
        assert len(said) == 1, said
        assert server.server.lost.startswith("struck"), "the mark that `pinstream serve` looks for"
        assert "Traceback" not in server.console.getvalue()
        # Other models are other processes, with contexts of their own.
        assert_served(server, "neighbour")
        client = grpc.InferenceServerClient(server.grpc_url)
        client.unload_model("struck")
        deadline = time.monotonic() + 20
        while client.is_model_ready("struck") and time.monotonic() < deadline:
            time.sleep(0.05)
        client.load_model("struck")
        client.close()
        assert_served(server, "struck")


@pytest.mark.parametrize("executions", [1, 2])
def test_a_shared_engine_that_lost_its_context_is_started_again_by_the_next_request(
    build: BuildPlan, tmp_path: Path, library: Path, trigger: Path, executions: int
) -> None:
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    two = "instance_group { count: 2 kind: KIND_GPU }\n"
    place(
        plan,
        tmp_path / "repository",
        "struck",
        ONE_LINE + two + parameters(PLUGINS=str(library), EXECUTIONS=str(executions)),
    )
    with running(repositories=[tmp_path / "repository"]) as server:
        first = lose(server, trigger)
        assert first.status() == "StatusCode.UNAVAILABLE"
        assert MEANING in first.message()
        # One instance has heard of it, and the other finds the process gone: both must be served again.
        for _ in range(8):
            assert_served(server, "struck")
        assert "the engine's process was started again" in server.console.getvalue()
        assert not server.server.lost, "a model that comes back by itself needs no restart"


@pytest.fixture
def serve(build: BuildPlan, tmp_path: Path, library: Path) -> Iterator[Callable[..., Serve]]:
    """Starts `pinstream serve` with the model `struck`."""
    plan = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1, 2, 4))
    place(plan, tmp_path / "repository", "struck", ONE_LINE + parameters(PLUGINS=library.name))
    shutil.copy(library, tmp_path / "repository" / "struck" / "1")
    started: list[Serve] = []

    def run(*options: str) -> Serve:
        started.append(Serve("--model-repository", tmp_path / "repository", *options))
        started[-1].wait_for("Stop with Ctrl-C", 120)
        return started[-1]

    yield run
    for process in started:
        if process.process.poll() is None:
            process.process.terminate()
            process.process.wait(90)


STRUCK = "/v2/models/struck/ready"


def test_serve_restart_brings_a_lost_model_back_without_a_hand(serve: Callable[..., Serve], trigger: Path) -> None:
    server = serve("--restart")
    assert_served(server, "struck")
    first = lose(server, trigger)
    assert first.status() == "StatusCode.UNAVAILABLE"
    # Triton 2.51 itself calls the model ready for ever.
    unready = seconds_until(lambda: not ready(server.endpoints, STRUCK), 5)
    back = seconds_until(lambda: ready(server.endpoints, STRUCK), 120)
    print(f"not ready after {unready:.1f} s, back after {back:.1f} s more")
    assert_served(server, "struck")
    (said,) = [line for line in server.lines if "RESTART" in line]
    assert "struck" in said
    assert MEANING in said
    server.process.terminate()
    assert server.end(90) == 0
    assert not left_behind(server)


def test_without_restart_serve_ends_with_what_happened(serve: Callable[..., Serve], trigger: Path) -> None:
    server = serve()
    lose(server, trigger)
    assert server.end(90) == 2
    assert "error: struck" in server.text
    assert MEANING in server.text
    assert not left_behind(server)
