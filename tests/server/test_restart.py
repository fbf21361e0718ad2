"""What dies is noticed within seconds, is not called ready, and with --restart comes back without a hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.install import find_triton
from pinstream_cli.triton.server import LONGEST_STOP_S
from pinstream_cli.triton.watchdog import Backoff
from tests import onnx_models
from tests.processes import family, still_there
from tests.server.conftest import add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_leftovers import tritonserver
from tests.server.test_plain_models import infer

MODEL = "/v2/models/classifier/ready"
BIASED = "/v2/models/biased/ready"
# Weights of several pages of memory.
WIDE = 1 << 16


def stubs_of(serve: Serve) -> list[int]:
    """The processes of the instances of its models."""
    server = tritonserver(serve)
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        if name.startswith("triton_python") and int(rest.split()[1]) == server:
            found.append(int(status.parent.name))
    return found


def stub_of(serve: Serve) -> int:
    """The process of an instance of the one model."""
    return stubs_of(serve)[0]


def seconds_until(condition: Callable[[], bool], most: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < most
        threading.Event().wait(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize("victim", [stub_of, tritonserver], ids=["stub", "tritonserver"])
def test_what_is_killed_is_not_ready_and_comes_back(
    start: Callable[..., Serve], classifier: Path, victim: Callable[[Serve], int]
) -> None:
    serve = start("--model", classifier, "--restart")
    serve.wait_for("Stop with Ctrl-C")
    assert ready(serve.endpoints, MODEL)
    os.kill(victim(serve), signal.SIGKILL)
    seconds_until(lambda: not ready(serve.endpoints, MODEL), 5)
    seconds_until(lambda: ready(serve.endpoints, MODEL), 60)
    assert serve.text.count("RESTART") == 1
    serve.process.terminate()
    assert serve.end() == 0
    assert not left_behind(serve)


def test_when_serve_is_killed_its_tritonserver_ends_and_the_next_serve_has_its_ports(
    start: Callable[..., Serve], classifier: Path
) -> None:
    """A supervisor starts serve again: nothing of the one before may be in its way."""
    killed = start("--model", classifier, "--restart")
    killed.wait_for("Stop with Ctrl-C")
    processes = {*family(killed).members}
    assert len(processes) > 1
    killed.process.kill()
    seconds_until(lambda: not still_there(processes), LONGEST_STOP_S)
    after = start("--model", classifier, "--restart", endpoints=killed.endpoints)
    after.wait_for("Stop with Ctrl-C")
    assert ready(after.endpoints, "/v2/models/classifier/ready")
    assert not left_behind(killed)


def comes_back_when_killed(serve: int, endpoints: Endpoints) -> None:
    """Kills the tritonserver of a `pinstream serve`, and waits until another one is ready."""
    (server,) = Path(f"/proc/{serve}/task/{serve}/children").read_text().split()
    os.kill(int(server), signal.SIGKILL)
    seconds_until(lambda: not ready(endpoints, MODEL), 5)
    seconds_until(lambda: ready(endpoints, MODEL), 60)


def test_it_comes_back_where_nobody_reads_any_more_what_it_says(classifier: Path) -> None:
    """As where what collects its log has died."""
    command = [sys.executable, "-m", "pinstream_cli", "serve", "--model", str(classifier), "--restart"]
    endpoints = Endpoints.free()
    command += [f"--{name}-port={getattr(endpoints, name)}" for name in ("http", "grpc", "metrics")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stderr is not None
        try:
            assert any("Stop with Ctrl-C" in line for line in serve.stderr)
            serve.stderr.close()
            comes_back_when_killed(serve.pid, endpoints)
        finally:
            serve.terminate()
            serve.wait(LONGEST_STOP_S)


def test_it_comes_back_where_there_was_nobody_to_read_from_the_beginning(classifier: Path) -> None:
    """Started with all of its standard files closed, as by some supervisors."""
    endpoints = Endpoints.free()
    ports = [f"--{name}-port={getattr(endpoints, name)}" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "pinstream_cli", "serve", "--model", str(classifier), "--restart", *ports]
    with subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command]) as serve:
        try:
            seconds_until(lambda: serve.poll() is not None or ready(endpoints, MODEL), 60)
            # Who may see it a moment later than we, and says so to nobody: what dies before is not started again.
            threading.Event().wait(3)
            assert serve.poll() is None
            assert {os.readlink(f"/proc/{serve.pid}/fd/{number}") for number in range(3)} == {os.devnull}
            comes_back_when_killed(serve.pid, endpoints)
        finally:
            serve.terminate()
            code = serve.wait(LONGEST_STOP_S)
    assert code == 0


LOST_IN_A_CALLBACK = """
import gc, signal, threading
from pinstream_cli.main import main

asked = []

def collected(phase, info):
    if asked and phase == "stop" and threading.current_thread() is threading.main_thread():
        asked.clear()
        signal.raise_signal(signal.SIGTERM)

def collect(number, frame):
    asked.append(number)
    while asked:  # another thread may be at it
        gc.collect()

gc.callbacks.append(collected)
signal.signal(signal.SIGUSR1, collect)
main()
"""


def test_it_ends_where_python_passed_over_the_exception_of_the_signal(classifier: Path) -> None:
    """Which comes between any two steps, also in a finalizer or a callback of the garbage collector."""
    endpoints = Endpoints.free()
    ports = [f"--{name}-port={getattr(endpoints, name)}" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-c", LOST_IN_A_CALLBACK, "serve", "--model", str(classifier), "--restart", *ports]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stderr is not None
        try:
            assert any("Stop with Ctrl-C" in line for line in serve.stderr)
            serve.send_signal(signal.SIGUSR1)
            told = serve.communicate(timeout=LONGEST_STOP_S)[1]
        finally:
            serve.kill()
    assert serve.returncode == 0
    assert "KeyboardInterrupt" in told
    assert told.endswith("Stopped.\n")


def test_it_comes_back_where_the_directory_that_it_was_started_in_is_gone(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """With all that was named from there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    onnx_models.classifier(tmp_path / "classifier.onnx")
    onnx_models.biased(add_model(tmp_path / "repository", "biased"), 2)
    named = ("--model", "../classifier.onnx", "--model-repository", "../repository")
    serve = start(*named, "--restart", directory=gone)
    serve.wait_for("Stop with Ctrl-C")
    gone.rmdir()
    os.kill(tritonserver(serve), signal.SIGKILL)
    seconds_until(lambda: not ready(serve.endpoints, MODEL), 5)
    seconds_until(lambda: ready(serve.endpoints, MODEL) and ready(serve.endpoints, BIASED), 60)
    assert serve.text.count("RESTART") == 1, serve.text


SAYS_THAT_IT_IS_LOST = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        texts = [bytes(pb_utils.get_input_tensor_by_name(r, "text").as_numpy().item()).decode() for r in requests]
        for text in texts:
            if text.startswith("Signal"):
                print(text, flush=True)
            else:
                pb_utils.Logger.log_error(text)
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


def test_a_model_that_says_it_is_lost_is_started_again_and_a_client_cannot_make_it_say_so(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """What pinstream's model.py says where it has lost its GPU context; tests/gpu has it do so."""
    directory = tmp_path / "repository" / "speaker" / "1"
    directory.mkdir(parents=True)
    config = 'backend: "python"\ninput { name: "text" data_type: TYPE_STRING dims: 1 }\n'
    (directory.parent / "config.pbtxt").write_text(config + 'output { name: "none" data_type: TYPE_FP32 dims: 1 }\n')
    (directory / "model.py").write_text(SAYS_THAT_IT_IS_LOST)
    serve = start("--model-repository", tmp_path / "repository", "--restart")
    serve.wait_for("Stop with Ctrl-C")
    in_a_line, on_a_line_of_its_own = "x] [pinstream] LOST x", 'x\nE1 1 m.py:1] "[pinstream] LOST x"'
    for text in (in_a_line, on_a_line_of_its_own, "[pinstream] about LOST things"):
        infer(serve, "speaker", text=np.array([text.encode()], object))
    threading.Event().wait(3)
    assert "RESTART" not in serve.text
    infer(serve, "speaker", text=np.array([b"[pinstream] LOST speaker_0: its reason"], object))
    seconds_until(lambda: not ready(serve.endpoints), 5)
    seconds_until(lambda: ready(serve.endpoints), 60)
    assert serve.text.count("RESTART speaker_0: its reason\n") == 1
    # And what Triton says before it hangs in a crash. It may be ended before the answer has gone out.
    with contextlib.suppress(InferenceServerException):
        infer(serve, "speaker", text=np.array([b"Signal (6) received."], object))
    serve.wait_for("RESTART Triton has crashed with signal 6\n")


HANGS_IN_A_CRASH = """
import time
class TritonPythonModel:
    def initialize(self, args):
        print("Signal (11) received.", flush=True)
        time.sleep(600)
"""


def test_what_hangs_in_a_crash_at_its_start_is_given_up(start: Callable[..., Serve], tmp_path: Path) -> None:
    directory = tmp_path / "repository" / "hanging" / "1"
    directory.mkdir(parents=True)
    (directory.parent / "config.pbtxt").write_text('backend: "python"\n')
    (directory / "model.py").write_text(HANGS_IN_A_CRASH)
    serve = start("--model-repository", tmp_path / "repository")
    assert serve.end() == 2
    assert "error: Triton has crashed with signal 11\n" in serve.text
    assert not left_behind(serve)


def test_weights_that_are_cut_short_where_they_lie_end_their_model_and_it_comes_back(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """Those in a file of their own are read there, all else is in memory."""
    file = add_model(tmp_path / "models", "biased")
    weights, kept = file.with_name("weights.bin"), tmp_path / "kept"
    onnx_models.biased(file, WIDE)
    onnx.save(onnx.load(file), file, save_as_external_data=True, location=weights.name, size_threshold=0)
    shutil.copy(weights, kept)
    serve = start("--model-repository", tmp_path / "models", "--restart")
    serve.wait_for("Stop with Ctrl-C")
    row = np.ones((1, WIDE), np.float32)
    expected = infer(serve, "biased", row=row).as_numpy("sum")
    os.truncate(weights, 0)
    with pytest.raises(InferenceServerException):
        infer(serve, "biased", row=row)
    seconds_until(lambda: not ready(serve.endpoints, BIASED), 5)
    shutil.move(kept, weights)
    seconds_until(lambda: ready(serve.endpoints, BIASED), 60)
    np.testing.assert_array_equal(infer(serve, "biased", row=row).as_numpy("sum"), expected)


def test_without_restart_a_dead_model_ends_the_server(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    os.kill(stub_of(serve), signal.SIGKILL)
    assert serve.end() == 2
    assert "error: the process of model 'classifier' has died" in serve.text
    assert not left_behind(serve)
    assert not ready(serve.endpoints)


def test_a_model_that_cannot_come_back_is_tried_again_until_it_can(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "repository" / "classifier" / "1"
    directory.mkdir(parents=True)
    (directory.parent / "config.pbtxt").write_text('backend: "pinstream"')
    shutil.copy(classifier, directory / "model.onnx")
    serve = start("--model-repository", tmp_path / "repository", "--restart")
    serve.wait_for("Stop with Ctrl-C")
    (directory / "model.onnx").rename(directory / "away.onnx")
    assert ready(serve.endpoints, MODEL), "what is loaded does not need its file"
    os.kill(stub_of(serve), signal.SIGKILL)
    serve.wait_for("no model.plan or model.onnx")
    (directory / "away.onnx").rename(directory / "model.onnx")
    seconds_until(lambda: ready(serve.endpoints, MODEL), 60)


def test_what_never_started_is_not_tried_again(start: Callable[..., Serve], tmp_path: Path) -> None:
    serve = start("--model", tmp_path / "none.onnx", "--restart")
    assert serve.end() == 2
    assert "does not exist" in serve.text


def test_short_lives_are_waited_for_longer_and_longer() -> None:
    backoff = Backoff()
    assert [backoff.next(5) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.next(600) == 0
    assert backoff.next(5) == 1


def test_a_triton_that_cannot_be_started_for_a_while_is_tried_again(
    start: Callable[..., Serve], tmp_path: Path, classifier: Path
) -> None:
    """As where memory or processes are short just after something has died of that."""
    real = find_triton()
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\nexec "{real.binary}" "$@"\n')
    binary.chmod(0o755)
    for part in ("backends", "python_backend_stubs"):
        (tmp_path / part).symlink_to(real.binary.parents[1] / part)
    serve = start("--model", classifier, "--restart", "--tritonserver", binary)
    serve.wait_for("Stop with Ctrl-C")
    script = binary.read_text()
    binary.write_text("#!/not/there\n")
    os.kill(tritonserver(serve), signal.SIGKILL)
    serve.wait_for("RESTART tritonserver cannot be started: [Errno 2] No such file")
    assert left_behind(serve) == []
    binary.write_text(script)
    seconds_until(lambda: ready(serve.endpoints, MODEL), 60)
    assert "Traceback" not in serve.text
