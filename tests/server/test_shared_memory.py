"""What is said to be needed of /dev/shm is what Triton really takes, and not much more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from onnx import TensorProto, helper

from pinstream_cli.triton.shared_memory import needs
from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import running
from tests.server.serve_process import SHM

WIDTH = 500_000
TWO_EXECUTIONS = """
parameters { key: "SHARE_ENGINE" value { string_value: "on" } }
parameters { key: "EXECUTIONS" value { string_value: "2" } }
"""
MIB = 1 << 20


def wide(path: Path) -> Path:
    """FP32 `x` [b,WIDTH] -> FP32 `y` [b,WIDTH]."""
    return onnx_models.save(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, ["b", WIDTH])],
        [("y", TensorProto.FLOAT, ["b", WIDTH])],
    )


def test_the_arithmetic_holds_against_a_real_server(tmp_path: Path) -> None:
    wide(add_model(tmp_path, "wide", ONE_LINE + "instance_group [ { count: 2 } ]\n"))
    wide(add_model(tmp_path, "two_at_once", ONE_LINE + TWO_EXECUTIONS))
    onnx_models.classifier(add_model(tmp_path, "classifier"))
    told = {model.name: model for model in needs([tmp_path])}
    assert told["wide"].instances == 2
    assert told["wide"].batch == 8
    assert told["two_at_once"].needed > told["wide"].needed / 2
    data = np.ones((8, WIDTH), np.float32)
    with running(repositories=[tmp_path]) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = grpc.InferInput("x", list(data.shape), "FP32")
        tensor.set_data_from_numpy(data)

        def region_sizes() -> list[int]:
            sizes = [region.stat().st_size for region in SHM.glob(f"{server.server.shm_prefix}*")]
            # The file whose lock says that they are in use is empty.
            return sorted(filter(None, sizes))

        # Until an instance has held as many at once as it can, which a busy machine may not give it at first.
        with ThreadPoolExecutor(6) as pool:
            for _ in range(5):
                for model in ("wide", "two_at_once"):
                    list(pool.map(lambda _, model=model: client.infer(model, [tensor]), range(40)))
                sizes = region_sizes()
                if sizes[-2] >= told["wide"].needed / 2 - 3 * MIB:
                    break
    regions = {"classifier": sizes[:1], "wide": sizes[1:3], "two_at_once": sizes[3:]}
    for name, found in regions.items():
        assert len(found) == told[name].instances
        expected = told[name].needed / told[name].instances
        # Not every instance need have met the largest batch, nor executions all that they may hold at once.
        slack = (3 + 16 * (name == "two_at_once")) * MIB
        assert expected - slack <= max(found) <= expected, (name, found, expected)
