"""One session with its default settings, one request at a time."""

import json
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the session."""
        config = json.loads(args["model_config"])
        file = config["parameters"]["MODEL_FILE"]["string_value"]
        self._session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs one request after the other."""
        responses = []
        for request in requests:
            feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            results = self._session.run(self._outputs, feed)
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self._outputs, results)]  # noqa: B905
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
