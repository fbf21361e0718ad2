"""Takes the same inputs as the measured model and answers zeros of its outputs' shapes.

With the parameter SPIN_US it looks at the clock for as many microseconds first, as long as a GPU would take: no Python
model that waits for one can answer sooner.
"""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what there is to answer."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._spin_s = float(config["parameters"].get("SPIN_US", {"string_value": "0"})["string_value"]) / 1e6
        self._batching = config["max_batch_size"] > 0
        self._outputs = {
            tensor["name"]: (pb_utils.triton_string_to_numpy(tensor["data_type"]), [max(1, d) for d in tensor["dims"]])
            for tensor in config["output"]
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request with zeros."""
        until = time.perf_counter() + self._spin_s
        while time.perf_counter() < until:
            pass
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
        batch = [arrays[0].shape[0]] if self._batching else []
        zeros = [
            pb_utils.Tensor(name, np.zeros([*batch, *dims], dtype)) for name, (dtype, dims) in self._outputs.items()
        ]
        return pb_utils.InferenceResponse(zeros)
