"""The YOLOX service under the soak: a detector that tells which version it is, and what it has seen of the picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import tritonclient.grpc as grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pinstream.sidecar import FILE_NAME, Sidecar, TensorEntry, file_sha256, write
from pinstream_cli.triton import sizing
from pinstream_cli.triton.assemble import service_repository
from tests import onnx_models
from tests.server.serve_process import Serve, left_behind
from tests.soak_subjects import TOLERANCE, Subject, infer

# Of the detector's input, and of each picture, so that nothing is scaled.
SIDE = 64
HALF = SIDE // 2
# x1, y1, x2, y2 of the quarters of a picture: above, then below, from left to right.
QUARTERS = np.array([(x, y, x + HALF, y + HALF) for y in (0, HALF) for x in (0, HALF)], np.float32)
MOST_PICTURES = 4
# What is loaded anew as well, pictures on their way from one to the other.
STEPS = (sizing.FIRST_STEP, "yolox_postprocess")


class Service(Subject):
    """The whole service, of which the detector gets new versions, and the other steps are loaded anew."""

    model, served = sizing.DETECTOR, "yolox"

    def configure(self, repository: Path) -> None:
        """Take the service as it is, with as many instances as `pinstream serve` makes here."""
        ours = shutil.ignore_patterns("__pycache__")
        shutil.copytree(service_repository(), repository, ignore=ours, dirs_exist_ok=True)
        shutil.rmtree(self.path / "1")
        sizing.size_service(repository, gpu=self.kind == "plan")
        self._instances: dict[str, int] = {}
        self._ignored = ""
        for file in repository.glob("*/config.pbtxt"):
            groups = text_format.Parse(file.read_text(), ModelConfig()).instance_group
            self._instances[file.parent.name] = sum(group.count for group in groups)

    @property
    def stubs(self) -> int:
        """How many instances in Python there are, of all steps."""
        return sum(self._instances.values())

    def unused(self, serve: Serve) -> list[str]:
        """Whether its pictures stay where the first step puts them, as they do where /dev/shm has room."""
        instances = self._instances[sizing.FIRST_STEP]
        regions = [path for path in left_behind(serve) if path.name.endswith("_places")]
        return [] if len(regions) == instances else [f"of {instances} first steps {len(regions)} have places"]

    def reconfigure(self) -> tuple[str, ...]:
        """Let the first and the last step pass over another parameter, with every second version."""
        # From the first one on: what is started while Triton serves inherits more of its open files.
        if self.last % 3 != 2:
            return ()
        self._ignored = f"of_version_{self.last}"
        for step in STEPS:
            file = self.path.parent / step / "config.pbtxt"
            config = text_format.Parse(file.read_text(), ModelConfig())
            config.parameters["IGNORED_PARAMETERS"].string_value = self._ignored
            new = file.with_name(".new")
            new.write_text(text_format.MessageToString(config))
            # There all at once: Triton may look just now.
            new.replace(file)
        return STEPS

    def is_reconfigured(self, client: grpc.InferenceServerClient) -> bool:
        """Whether both are those that were configured last."""
        found = (client.get_model_config(step).config.parameters["IGNORED_PARAMETERS"] for step in STEPS)
        return all(parameter.string_value == self._ignored for parameter in found)

    def make(self, directory: Path, version: int) -> Path:
        """A detector of four boxes, the quarters: the score is how bright one is, the class is the version."""
        made = onnx_models.save(
            directory / "model.onnx",
            [
                helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
                helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
                helper.make_node("AveragePool", ["planes"], ["quarters"], kernel_shape=[HALF] * 2, strides=[HALF] * 2),
                helper.make_node("ReduceMean", ["quarters"], ["grey"], axes=[1], keepdims=0),
                helper.make_node("Reshape", ["grey", "column"], ["bright"]),
                helper.make_node("Div", ["bright", "most"], ["score"]),
                helper.make_node("Mul", ["score", "none"], ["nothing"]),
                helper.make_node("Add", ["nothing", "quarter_boxes"], ["boxes"]),
                helper.make_node("Add", ["nothing", "version"], ["class"]),
                helper.make_node("Concat", ["boxes", "score", "class"], ["candidates"], axis=2),
            ],
            [("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
            [("candidates", TensorProto.FLOAT, ["batch", len(QUARTERS), 6])],
            {
                "column": np.array([-1, len(QUARTERS), 1], np.int64),
                "most": np.array(255, np.float32),
                "none": np.array(0, np.float32),
                "quarter_boxes": QUARTERS[np.newaxis],
                "version": np.array(version, np.float32),
            },
        )
        images = TensorEntry("images", "UINT8", (-1, SIDE, SIDE, 3))
        candidates = TensorEntry("candidates", "FP32", (-1, len(QUARTERS), 6))
        described = Sidecar("onnx", made.name, file_sha256(made), (images,), (candidates,), ("quarter",))
        write(directory / FILE_NAME, described)
        return made

    def ask(self, client: grpc.InferenceServerClient, rng: np.random.Generator) -> str:
        """Hold what is said of each picture against the picture; all of them are answered by one version."""
        pictures = [_picture(rng) for _ in range(int(rng.integers(1, MOST_PICTURES + 1)))]
        encoded = np.array([[cv2.imencode(".png", picture)[1].tobytes()] for picture in pictures], object)
        result = infer(client, self.served, {"image": encoded}, ["num_dets", "det_boxes", "det_scores", "det_classes"])
        counts = result.as_numpy("num_dets")
        np.testing.assert_array_equal(counts, np.full((len(pictures), 1), len(QUARTERS)))
        scores, boxes, classes = (
            result.as_numpy(f"det_{name}")[:, : len(QUARTERS)] for name in ("scores", "boxes", "classes")
        )
        bright = np.array([_brightness(picture) for picture in pictures])
        order = np.argsort(-bright, axis=1)
        best_first = np.take_along_axis(bright, order, axis=1)
        np.testing.assert_allclose(scores, best_first, atol=max(TOLERANCE[self.kind], 1e-5))
        np.testing.assert_allclose(boxes, QUARTERS[order], atol=0.1)
        versions = np.unique(classes)
        assert len(versions) == 1, f"one answer of the versions {versions}"
        return str(versions[0])


def _picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of which the quarters are differently bright, by more than TensorRT may be off."""
    levels = rng.permutation(np.array([90, 130, 170, 210])) + rng.integers(-15, 16, 4)
    image = np.kron(levels.reshape(2, 2, 1), np.ones((HALF, HALF, 3)))
    return np.asarray(image + rng.integers(-10, 11, image.shape), np.uint8)


def _brightness(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of each quarter, from 0 to 1."""
    quarters = picture.reshape(2, HALF, 2, HALF, 3).mean(axis=(1, 3, 4))
    return np.asarray(quarters.reshape(-1) / 255, np.float32)
