"""What Triton hands over is read where it lies: its Python stub is kept from copying it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tritonclient import http

import pinstream
from tests.server.running import Running, running

MODEL = "where"
CONFIG = """backend: "python"
input { name: "in" data_type: TYPE_UINT8 dims: [ -1 ] }
output { name: "same" data_type: TYPE_BOOL dims: [ 1 ] }
output { name: "sum" data_type: TYPE_INT64 dims: [ 1 ] }
"""
CODE = """import sys
import numpy as np
import triton_python_backend_utils as utils

sys.path.insert(0, {backend!r})
from pinstream.triton_tensors import leave_out_copies

class TritonPythonModel:
    def initialize(self, args):
        {prepare}

    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "in")) for request in requests]

    def _answer(self, tensor):
        array, there = tensor.as_numpy(), np.from_dlpack(tensor)
        same = utils.Tensor("same", np.array([array.ctypes.data == there.ctypes.data]))
        return utils.InferenceResponse([same, utils.Tensor("sum", np.array([array.sum(dtype=np.int64)]))])
"""
PREPARES = {
    "as it is": ("pass", False),
    "left out": ("assert leave_out_copies()", True),
    "left out once": ("assert leave_out_copies() and leave_out_copies()", True),
    "too late": ("utils.Tensor('any', np.zeros(1)).as_numpy(); assert not leave_out_copies()", False),
}


@pytest.mark.parametrize(("prepare", "left_out"), PREPARES.values(), ids=PREPARES.keys())
def test_an_input_is_copied_unless_that_is_left_out(tmp_path: Path, prepare: str, left_out: bool) -> None:
    backend = str(Path(str(pinstream.__file__)).parents[1])
    (tmp_path / MODEL / "1").mkdir(parents=True)
    (tmp_path / MODEL / "config.pbtxt").write_text(CONFIG)
    (tmp_path / MODEL / "1" / "model.py").write_text(CODE.format(backend=backend, prepare=prepare))
    with running(repositories=[tmp_path]) as server, http.InferenceServerClient(server.http_url) as client:
        for size in (1, 100_000):
            array = np.arange(size).astype(np.uint8)
            given = http.InferInput("in", [size], "UINT8")
            given.set_data_from_numpy(array)
            answer = client.infer(MODEL, [given])
            assert answer.as_numpy("same")[0] == left_out
            assert answer.as_numpy("sum")[0] == array.sum(dtype=np.int64)


def test_the_backend_leaves_it_out(plain: Running) -> None:
    assert "once more than is needed" not in plain.console.getvalue()


ECHO = "echo"
ECHO_TYPES = {"TYPE_STRING": "BYTES", "TYPE_BOOL": "BOOL", "TYPE_FP32": "FP32"}
ECHO_CODE = """import sys
import numpy as np
import triton_python_backend_utils as utils

sys.path.insert(0, {backend!r})
from pinstream.triton_tensors import leave_out_copies

class TritonPythonModel:
    def initialize(self, args):
        assert leave_out_copies()

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = {{tensor.name(): tensor.as_numpy() for tensor in request.inputs()}}
        made = [utils.Tensor(name.replace("in", "out"), array.T) for name, array in given.items()]
        for tensor, array in zip(made, given.values()):
            assert np.array_equal(tensor.as_numpy(), array.T)
        return utils.InferenceResponse(made)
"""


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (300, 400)], ids=str)
def test_views_of_inputs_come_back_right_transposed(tmp_path: Path, shape: tuple[int, int]) -> None:
    backend = str(Path(str(pinstream.__file__)).parents[1])
    lines = ['backend: "python"']
    for own, name in ECHO_TYPES.items():
        lines.append(f'input {{ name: "in{name}" data_type: {own} dims: [ -1, -1 ] }}')
        lines.append(f'output {{ name: "out{name}" data_type: {own} dims: [ -1, -1 ] }}')
    (tmp_path / ECHO / "1").mkdir(parents=True)
    (tmp_path / ECHO / "config.pbtxt").write_text("\n".join(lines))
    (tmp_path / ECHO / "1" / "model.py").write_text(ECHO_CODE.format(backend=backend))
    numbers = np.arange(shape[0] * shape[1]).reshape(shape)
    arrays = {
        "BYTES": numbers.astype(str).astype(np.bytes_).astype(np.object_),
        "BOOL": numbers % 3 == 0,
        "FP32": numbers.astype(np.float32),
    }
    inputs = [http.InferInput(f"in{name}", list(shape), name) for name in arrays]
    for given, array in zip(inputs, arrays.values(), strict=True):
        given.set_data_from_numpy(array)
    with running(repositories=[tmp_path]) as server, http.InferenceServerClient(server.http_url) as client:
        answer = client.infer(ECHO, inputs)
        for name, array in arrays.items():
            assert np.array_equal(answer.as_numpy(f"out{name}"), array.T), name
