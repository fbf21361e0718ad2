"""What cannot be loaded takes nothing else down: not while a server runs, and not when it is started again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_leftovers import tritonserver
from tests.server.test_plain_models import infer, pixels
from tests.server.test_restart import seconds_until

POLL = "--repository-poll-secs=1"


def is_ready(serve: Serve, model: str, version: int | None = None) -> bool:
    at = "" if version is None else f"/versions/{version}"
    return ready(serve.endpoints, f"/v2/models/{model}{at}/ready")


def kill_and_wait(serve: Serve, *models: str) -> None:
    """Kill tritonserver, and wait until it serves these models again."""
    os.kill(tritonserver(serve), signal.SIGKILL)
    seconds_until(lambda: not ready(serve.endpoints), 5)
    seconds_until(lambda: all(is_ready(serve, model) for model in models), 60)


def assert_answers(serve: Serve, file: Path) -> None:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    sent = pixels(3)
    got = infer(serve, file.parent.parent.name, pixels=sent).as_numpy("probabilities")
    np.testing.assert_allclose(got, session.run(None, {"pixels": sent})[0], rtol=1e-4, atol=1e-6)


def test_a_restart_serves_all_that_can_be_served_and_the_rest_once_it_is_put_right(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    old = onnx_models.classifier(add_model(repository, "classifier"), seed=1)
    good = onnx_models.classifier(tmp_path / "good" / "model.onnx", seed=2)
    first = onnx_models.classifier(add_model(repository, "both", ONE_LINE + "version_policy { all { } }\n"))
    shutil.copytree(first.parent, first.parent.with_name("2"))
    serve = start("--model-repository", repository, "--restart", POLL)
    serve.wait_for("Stop with Ctrl-C")
    new, third = repository / "classifier" / "2" / "model.onnx", add_model(repository, "third")
    new.parent.mkdir()
    new.write_bytes(b"broken")
    for file in (third, first):
        file.write_bytes(b"broken")
    # Triton reads nothing of a repository in which there is one.
    (repository / "dead").symlink_to("nowhere")
    kill_and_wait(serve, "classifier", "both")
    serve.wait_for("NOT SERVED model 'third': ")
    assert "NOT SERVED version 2 of model 'classifier', of which another one is served: " in serve.text
    assert "NOT SERVED version 1 of model 'both', of which another one is served: " in serve.text
    assert f"NOT SERVED {repository}/dead, a link that leads nowhere" in serve.text
    assert f"{new} (6 bytes) is not an ONNX model" in serve.text, "it is named where the user put it"
    # Triton tries again what is broken, over and over.
    threading.Event().wait(2)
    assert ready(serve.endpoints), "the server itself is well"
    assert not is_ready(serve, "third")
    assert not is_ready(serve, "both", 1)
    assert_answers(serve, old)
    assert_answers(serve, first.parent.with_name("2") / "model.onnx")
    for file in (new, third, first):
        shutil.copy(good, tmp_path / "copy")
        (tmp_path / "copy").rename(file)
    put_right = (("third", 1), ("classifier", 2), ("both", 1))
    seconds_until(lambda: all(is_ready(serve, *version) for version in put_right), 20)
    assert_answers(serve, new)
    assert serve.text.count("RESTART") == 2, "one for the kill, one that told what does not load"


def test_a_model_whose_directory_is_away_at_a_restart_is_told_and_comes_back_with_it(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """The last one of its repository: there is another."""
    away = onnx_models.classifier(add_model(tmp_path / "first", "away"))
    onnx_models.classifier(add_model(tmp_path / "second", "classifier"))
    serve = start(
        "--model-repository", tmp_path / "first", "--model-repository", tmp_path / "second", "--restart", POLL
    )
    serve.wait_for("Stop with Ctrl-C")
    shutil.move(tmp_path / "first" / "away", tmp_path / "kept")
    kill_and_wait(serve, "classifier")
    serve.wait_for("NOT SERVED model 'away': its directory is not there any more; put it back\n")
    assert not is_ready(serve, "away")
    shutil.move(tmp_path / "kept", tmp_path / "first" / "away")
    seconds_until(lambda: is_ready(serve, "away"), 20)
    assert_answers(serve, away)
    assert serve.text.count("RESTART") == 1, serve.text


def test_a_version_that_is_taken_back_and_stays_in_memory_is_told_of(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    """Triton tries the broken one below it; beside it a model whose older version is served again."""
    for name in ("plain", "stays"):
        onnx_models.classifier(add_model(tmp_path, name), seed=1)
        (tmp_path / name / "3").mkdir()
        onnx_models.classifier(tmp_path / name / "3" / "model.onnx", seed=3)
    (tmp_path / "stays" / "2").mkdir()
    (tmp_path / "stays" / "2" / "model.onnx").write_bytes(b"broken")
    serve = start("--model-repository", tmp_path, "--model-control-mode=poll", POLL)
    serve.wait_for("Stop with Ctrl-C")
    for name in ("plain", "stays"):
        shutil.rmtree(tmp_path / name / "3")
    seconds_until(lambda: is_ready(serve, "plain", 1), 20)
    serve.wait_for(f"{tmp_path}/stays/3 is not there any more; take away as well what Triton would not load", 30)
    assert is_ready(serve, "stays", 3)
    shutil.rmtree(tmp_path / "stays" / "2")
    seconds_until(lambda: is_ready(serve, "stays", 1), 20)
    assert serve.text.count("WARNING version 3 of model 'stays' is served from memory alone") == 1
    assert "is served from memory" not in serve.text.replace("of model 'stays' is", "")


ANSWERS = "class TritonPythonModel:\n    def execute(self, requests): return []\n"
DIES = "import os; os.abort()\n"


def test_models_loaded_over_the_api_come_back_and_a_version_whose_process_dies_takes_nothing_down(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    tensor = '{ name: "x" data_type: TYPE_FP32 dims: 1 }'
    config = f'backend: "python"\ninput {tensor}\noutput {tensor.replace("x", "y", 1)}\n'
    for name in ("steady", "unloaded"):
        (add_model(repository, name, config).parent / "model.py").write_text(ANSWERS)
    file = onnx_models.classifier(add_model(repository, "classifier"))
    explicit = ["--model-control-mode=explicit", "--load-model", "unloaded", "--load-model=steady"]
    serve = start("--model-repository", repository, "--restart", *explicit)
    serve.wait_for("Stop with Ctrl-C")
    with grpc.InferenceServerClient(serve.grpc_url) as control:
        control.load_model("classifier")
        control.unload_model("unloaded")
        (repository / "steady" / "2").mkdir()
        (repository / "steady" / "2" / "model.py").write_text(DIES)
        # Triton never notices.
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
            control.load_model("steady", client_timeout=4)
    assert is_ready(serve, "steady", 1)
    assert "RESTART" not in serve.text
    kill_and_wait(serve, "classifier", "steady")
    assert_answers(serve, file)
    assert is_ready(serve, "steady", 1)
    assert not is_ready(serve, "unloaded")
    serve.wait_for("NOT SERVED version 2 of model 'steady'")
    serve.process.terminate()
    assert serve.end() == 0
    assert not left_behind(serve)
