"""The client is thin: it imports with its own dependencies alone, and only what the protocol needs."""

import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[3] / "client"


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(CLIENT)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client_needs_nothing_of_the_server(protocol: str) -> None:
    run(f"""
import sys
for name in ("cv2", "onnx", "onnxruntime", "PIL", "pinstream", "pinstream_cli", "click", "rich", "pytriton"):
    sys.modules[name] = None
import numpy as np
from pinstream_client import Detector, ServerUnreachable
with Detector("{protocol}://127.0.0.1:1", timeout=5) as detector:
    try:
        detector.detect(np.zeros((4, 4, 3), np.uint8))
    except ServerUnreachable:
        pass
    else:
        raise SystemExit("port 1 answers")
""")


def test_each_protocol_leaves_the_others_library_alone() -> None:
    script = "import sys; from pinstream_client import Detector; Detector('{}://localhost'); print(*sys.modules)"
    assert not {"tritonclient.http", "gevent"} & set(run(script.format("grpc")).split())
    assert not {"tritonclient.grpc", "grpc"} & set(run(script.format("http")).split())
