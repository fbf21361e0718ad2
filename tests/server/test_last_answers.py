"""Where one model has died, what the others have begun is answered before the server is started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.server.conftest import add_model
from tests.server.serve_process import Serve, ready
from tests.server.test_plain_models import infer
from tests.server.test_restart import seconds_until, stubs_of

SLOW_S = 1.5
# After a death, which is noticed after one second to two: in the middle of what is sent then.
UNTIL_SENT_S = 0.7
SLOW = f"""
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        time.sleep({SLOW_S})
        rows = [pb_utils.get_input_tensor_by_name(request, "row").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("doubled", 2 * row)]) for row in rows]
"""
CONFIG = """backend: "python"
input { name: "row" data_type: TYPE_FP32 dims: 3 }
output { name: "doubled" data_type: TYPE_FP32 dims: 3 }
"""


@pytest.fixture
def bereaved(start: Callable[..., Serve], tmp_path: Path) -> Serve:
    """Serves a slow model, beside which another one has just died."""
    onnx_models.classifier(add_model(tmp_path / "models", "classifier"))
    add_model(tmp_path / "models", "slow", CONFIG).with_name("model.py").write_text(SLOW)
    serve = start("--model-repository", tmp_path / "models", "--restart")
    serve.wait_for("Stop with Ctrl-C")
    (victim,) = (pid for pid in stubs_of(serve) if b"/classifier/1/" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)
    time.sleep(UNTIL_SENT_S)
    return serve


def test_what_the_others_have_begun_is_answered_before_the_restart(bereaved: Serve) -> None:
    serve, answered = bereaved, 0
    while True:
        row, began = np.full(3, answered, np.float32), time.monotonic()
        try:
            doubled = infer(serve, "slow", row=row).as_numpy("doubled")
        except InferenceServerException:
            break
        np.testing.assert_array_equal(doubled, 2 * row)
        answered += 1
    assert answered
    assert time.monotonic() - began < SLOW_S, "it was not turned away, but lost in the middle"
    serve.wait_for("RESTART the process of model 'classifier' has died")


def test_it_is_answered_also_where_serve_is_asked_to_stop_meanwhile(bereaved: Serve) -> None:
    row = np.full(3, 7, np.float32)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(infer, bereaved, "slow", row=row)
        seconds_until(lambda: not ready(bereaved.endpoints), 5)
        bereaved.process.terminate()
        np.testing.assert_array_equal(call.result().as_numpy("doubled"), 2 * row)
    assert bereaved.end() == 0
