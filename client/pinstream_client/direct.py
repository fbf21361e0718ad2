"""The detection service without its first and last step: letterbox here, the detector there, suppression here.

For processes that have pixels and a CPU to spare. The results are those of the whole service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cluster import Cluster
from .detections import Detections
from .errors import ModelNotFound
from .images import ImageLike, as_bgr
from .letterbox import Pixels, letterbox
from .nms import CLASS, SCORE, Y2, Floats, Thresholds, select, to_original_pixels
from .reading import Reading, text
from .shared_memory import SharedMemory
from .steps import Steps, Work
from .tensors import Signature, TensorSpec, read_signature
from .transport import Deadline, InferRequest, Json, Outputs, Parameter, SharedTensor
from .yolox import HIGHEST_CLASS, DetectRequest

if TYPE_CHECKING:
    from .regions import Region

CANDIDATES = "candidates"
_LONGEST_SIDE = 8192  # pixels of a detector's input: memory is taken for it on a server's word


@dataclass(frozen=True)
class DetectorModel:
    """The model between the two steps.

    Attributes:
        name: Of the model.
        image_input: Name of its input, UINT8 [n, height, width, 3].
        height: Of its input in pixels.
        width: Of its input in pixels.
        candidates: How many it gives per image.
        defaults: The service's own thresholds.
    """

    name: str
    image_input: str
    height: int
    width: int
    candidates: int
    defaults: Thresholds


class DirectRoute:
    """Images to the detector itself, as tensors within the requests or in shared memory.

    Args:
        cluster: The servers.
        model: Name of the ensemble that the detector belongs to.
        memory: Regions for the tensors; None sends them within the requests.
    """

    def __init__(self, cluster: Cluster, model: str, memory: SharedMemory | None = None) -> None:
        self._cluster = cluster
        self._ensemble = model
        self._memory = memory
        self._model: DetectorModel | None = None

    @property
    def memory(self) -> SharedMemory | None:
        """The regions, where there are any that work."""
        return self._memory if self._memory is not None and not self._memory.refused else None

    def forget(self) -> None:
        """Asks about the model anew at the next call."""
        self._model = None

    def close(self) -> Steps[None]:
        """Has the servers forget the regions, and removes them."""
        if self._memory is not None:
            yield from self._memory.close()

    def read(self, image: ImageLike) -> Steps[Pixels]:
        """The pixels of an image. Raises InvalidImage before anything is sent."""
        pixels: Pixels = yield Work(lambda: as_bgr(image))
        return pixels

    def detect(
        self, image: Pixels, request: DetectRequest, names: tuple[str, ...], deadline: Deadline
    ) -> Steps[Detections]:
        """The objects in one image that was read."""
        if self._model is None:
            self._model = yield from self._learn(deadline)
        model = self._model
        thresholds = model.defaults.overridden(request.parameters, model.candidates)
        height, width = image.shape[:2]
        started = time.perf_counter()
        region = self.memory.take(model.height * model.width * 3) if self.memory else None
        if region is None:
            ratio, found = yield from self._within_request(model, image, request, thresholds, deadline)
        else:
            assert self._memory is not None
            try:
                sent = self._through(self._memory, region, model, image, request, thresholds, deadline)
                ratio, found = yield from sent
            finally:
                self._memory.give_back(region)
        return Detections(
            boxes=to_original_pixels(found[:, : Y2 + 1], ratio, width, height),
            scores=found[:, SCORE],
            class_ids=found[:, CLASS].astype(np.int32),
            names=names,
            image_size=(width, height),
            round_trip_ms=(time.perf_counter() - started) * 1e3,
        )

    def _within_request(
        self,
        model: DetectorModel,
        image: Pixels,
        request: DetectRequest,
        thresholds: Thresholds,
        deadline: Deadline,
    ) -> Steps[tuple[float, Floats]]:
        tensor = np.empty((1, model.height, model.width, 3), np.uint8)
        ratio = yield Work(lambda: letterbox(image, tensor[0]))
        infer = _infer_request(model, tensor, request)
        found: Floats = yield from self._cluster.ask(
            lambda transport, left: transport.infer(infer, left),
            deadline,
            lambda outputs: _selected(outputs, model, thresholds),
            model.name,
        )
        return ratio, found

    def _through(
        self,
        memory: SharedMemory,
        region: Region,
        model: DetectorModel,
        image: Pixels,
        request: DetectRequest,
        thresholds: Thresholds,
        deadline: Deadline,
    ) -> Steps[tuple[float, Floats]]:
        shape = (1, model.height, model.width, 3)
        nbytes = model.height * model.width * 3
        tensor = region.host[:nbytes].reshape(shape)

        def fill() -> float:
            ratio = letterbox(image, tensor[0])
            region.publish(nbytes)
            return ratio

        ratio = yield Work(fill)
        shared = _infer_request(model, SharedTensor(region.name, "UINT8", shape, nbytes), request)
        inline = _infer_request(model, tensor, request)

        def once(server: int) -> Steps[Floats]:
            outputs = yield from memory.ask(
                server,
                region,
                lambda transport, left: transport.infer(shared, left),
                lambda transport, left: transport.infer(inline, left),
                deadline,
            )
            with Reading(self._cluster.addresses[server], model.name):
                return _selected(outputs, model, thresholds)

        return ratio, (yield from self._cluster.attempt(once, deadline))

    def _learn(self, deadline: Deadline) -> Steps[DetectorModel]:
        """Finds detector and thresholds in the ensemble's configuration.

        Raises:
            ModelNotFound: The model is no ensemble with a detector in it.
        """
        detector, after = yield from self._config(self._ensemble, deadline, _steps_beside_candidates)
        if detector is None or after is None:
            raise ModelNotFound(
                f"model '{self._ensemble}' has no step that gives '{CANDIDATES}' and one that takes them, as the "
                "detection service has: send encoded images instead (transport='encoded')"
            )
        defaults = yield from self._config(after, deadline, _thresholds)
        model: DetectorModel = yield from self._cluster.ask(
            lambda transport, left: transport.model_metadata(detector, left),
            deadline,
            lambda metadata: _detector_model(detector, metadata, defaults),
        )
        return model

    def _config(self, model: str, deadline: Deadline, read: Callable[[Json], Any]) -> Steps[Any]:
        return self._cluster.ask(lambda transport, left: transport.model_config(model, left), deadline, read)


def _infer_request(model: DetectorModel, tensor: Any, request: DetectRequest) -> InferRequest:
    return InferRequest(model.name, {model.image_input: tensor}, (CANDIDATES,), cancellation=request.cancellation)


def _selected(outputs: Outputs, model: DetectorModel, thresholds: Thresholds) -> Floats:
    """The detections among a detector's candidates.

    Raises:
        ValueError: The candidates are not as its metadata says, or a detection has numbers that are none.
    """
    candidates = outputs[CANDIDATES]
    expected = (1, model.candidates, CLASS + 1)
    if candidates.dtype != np.float32 or candidates.shape != expected:
        raise ValueError(
            f"{CANDIDATES} is {candidates.dtype} {list(candidates.shape)}: expected float32 {list(expected)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # of candidates that are no boxes
        found = select(candidates[0], thresholds)
    classes = found[:, CLASS]
    if not (np.isfinite(found).all() and ((classes >= 0) & (classes <= HIGHEST_CLASS)).all()):
        raise ValueError("a box, score or class that is no number, or out of range")
    return found


def _steps_beside_candidates(config: Json) -> tuple[str | None, str | None]:
    """Names of the models of an ensemble that give the candidates and that take them, where there are such."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    detector = next((text(step["model_name"]) for step in steps if CANDIDATES in step.get("output_map", {})), None)
    after = next((text(step["model_name"]) for step in steps if CANDIDATES in step.get("input_map", {})), None)
    return detector, after


def _detector_model(name: str, metadata: Json, defaults: Thresholds) -> DetectorModel:
    signature = read_signature(metadata)
    try:
        (image,), (candidates,) = _without_references(signature.inputs), signature.outputs.values()
        (_, height, width, channels), (_, count, fields) = image.shape, candidates.shape
    except ValueError:
        raise _no_detector(name, signature) from None
    fits = (image.dtype, channels, candidates.dtype, fields) == ("UINT8", 3, "FP32", CLASS + 1)
    if not fits or min(height, width) < 1 or max(height, width) > _LONGEST_SIDE or count < 1:
        raise _no_detector(name, signature)
    bounded = replace(defaults, max_det=min(defaults.max_det, count))
    return DetectorModel(name, image.name, height, width, count, bounded)


def _without_references(inputs: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """The inputs that are no other way to bring another, as `images_at` is for `images` (BY_REFERENCE)."""
    return [spec for name, spec in inputs.items() if name.removesuffix("_at") not in inputs.keys() - {name}]


def _no_detector(name: str, found: Signature) -> ModelNotFound:
    inputs, outputs = (", ".join(map(str, specs.values())) for specs in (found.inputs, found.outputs))
    return ModelNotFound(
        f"model '{name}' is no detector to send pixels to: it has inputs {inputs or 'none'} and outputs "
        f"{outputs or 'none'}, expected UINT8 [n, H, W, 3] of at most {_LONGEST_SIDE} pixels a side and FP32 [n, K, 6]"
    )


def _thresholds(config: Json) -> Thresholds:
    """The defaults as the last step's parameters set them."""
    parameters: Mapping[str, Json] = config.get("parameters", {})
    texts = {name: parameters.get(name.upper(), {}).get("string_value", "") for name in ("conf", "iou", "max_det")}
    given: dict[str, Parameter] = {
        name: int(value) if name == "max_det" else float(value) for name, value in texts.items() if value
    }
    return replace(Thresholds(), **given)  # type: ignore[arg-type]
