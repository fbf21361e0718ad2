"""BF16 through a real Triton, by the way that model.py takes: NumPy has no such type, and Triton refuses to give it."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.server.running import running

BACKEND = Path(__file__).parents[2] / "backend"
CONFIG = """backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_BF16 dims: [ 3 ] }
output { name: "y" data_type: TYPE_BF16 dims: [ 3 ] }
"""
# Answers the next larger number. A BF16 is the upper half of an FP32.
MODEL = f"""import sys
sys.path.insert(0, {str(BACKEND)!r})
from functools import partial
import triton_python_backend_utils as pb_utils
from pinstream.dlpack import bits_of, handed_over
from pinstream.regions import SharedRegions, address_of

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            sent = bits_of(request.inputs()[0])
            # Where registered memory is looked for: Triton's own, and no copy of it.
            assert SharedRegions().place(address_of(sent), sent.nbytes)
            y = handed_over(sent + 1, partial(pb_utils.Tensor.from_dlpack, "y"), bfloat16=True)
            answers.append(pb_utils.InferenceResponse([y]))
        return answers
"""


def test_bits_come_in_and_go_out_as_bf16(tmp_path: Path) -> None:
    version = tmp_path / "bf16" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL)
    sent = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -0.125]], np.float32)
    bits = (sent.view(np.uint32) >> 16).astype(np.uint16)
    request = service_pb2.ModelInferRequest(model_name="bf16", raw_input_contents=[bits.tobytes()])
    request.inputs.add(name="x", datatype="BF16", shape=bits.shape)
    with running(repositories=[tmp_path]) as server, grpc.insecure_channel(server.grpc_url) as channel:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        # Often enough that memory given back too soon would show.
        answers = [triton.ModelInfer(request, timeout=60) for _ in range(50)]
    for answer in answers:
        assert answer.outputs[0].datatype == "BF16"
        found = np.frombuffer(answer.raw_output_contents[0], np.uint16)
        np.testing.assert_array_equal(found.reshape(bits.shape), bits + 1)
    assert "Exception ignored" not in server.console.getvalue()
