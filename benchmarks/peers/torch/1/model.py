"""The same work as the measured detector, uint8 NHWC in and the best K candidates out, in PyTorch.

Requests are gathered into one batch, padded to one of a few sizes, so that nothing is compiled while it serves.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compiles the network for each batch size."""
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        sys.path[:0] = [given["CHECKOUT"]]
        from benchmarks.peers.torch.network import Detector

        (height, width, _), (candidates, _) = config["input"][0]["dims"], config["output"][0]["dims"]
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._sizes = sorted(map(int, given["BATCH_SIZES"].split(",")))
        self._detector = Detector(given["SIZE"], int(given["CLASSES"]), int(given["SEED"]), (height, width), candidates)
        self._pinned = torch.zeros((self._sizes[-1], height, width, 3), dtype=torch.uint8).pin_memory()
        self._pixels = self._pinned.numpy()
        for size in self._sizes:
            self._run(size)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs all requests together, as far as the largest size goes."""
        arrays = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        answers = self._answer(arrays)
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self._output, answer)]) for answer in answers]

    def _answer(self, arrays: Sequence[Any]) -> list[Any]:
        counts = [len(array) for array in arrays]
        images = np.concatenate(arrays) if sum(counts) > self._sizes[-1] else None
        if images is not None:  # more than a batch; Triton gives at most max_batch_size
            parts = np.split(images, range(self._sizes[-1], len(images), self._sizes[-1]))
            found = np.concatenate([self._answer([part])[0] for part in parts])
            return np.split(found, np.cumsum(counts)[:-1])
        start = 0
        for array in arrays:
            self._pixels[start : start + len(array)] = array
            start += len(array)
        found = self._run(next(size for size in self._sizes if size >= start))[:start]
        return np.split(found, np.cumsum(counts)[:-1])

    def _run(self, size: int) -> Any:
        return self._detector(self._pinned[:size].cuda(non_blocking=True)).cpu().numpy()
