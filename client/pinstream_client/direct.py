"""The detection service without its first and last step: letterbox here, the detector there, suppression here.

For processes that have pixels and a CPU to spare. The results are those of the whole service.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cluster import Cluster
from .detections import Detections
from .errors import ModelNotFound
from .images import ImageLike, as_bgr
from .letterbox import Pixels, letterbox
from .nms import CLASS, SCORE, Y2, Floats, Thresholds, select, to_original_pixels
from .shared_memory import SharedMemory
from .steps import Steps, Work
from .transport import Deadline, InferRequest, Json, Parameter, SharedTensor
from .yolox import DetectRequest

if TYPE_CHECKING:
    from .regions import Region

CANDIDATES = "candidates"


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
            ratio, candidates = yield from self._within_request(model, image, request, deadline)
        else:
            assert self._memory is not None
            try:
                ratio, candidates = yield from self._through(self._memory, region, model, image, request, deadline)
            finally:
                self._memory.give_back(region)
        found = select(candidates, thresholds)
        return Detections(
            boxes=to_original_pixels(found[:, : Y2 + 1], ratio, width, height),
            scores=found[:, SCORE],
            class_ids=found[:, CLASS].astype(np.int32),
            names=names,
            image_size=(width, height),
            round_trip_ms=(time.perf_counter() - started) * 1e3,
        )

    def _within_request(
        self, model: DetectorModel, image: Pixels, request: DetectRequest, deadline: Deadline
    ) -> Steps[tuple[float, Floats]]:
        tensor = np.empty((1, model.height, model.width, 3), np.uint8)
        ratio = yield Work(lambda: letterbox(image, tensor[0]))
        infer = _infer_request(model, tensor, request)
        outputs = yield from self._cluster.ask(lambda transport, left: transport.infer(infer, left), deadline)
        return ratio, outputs[CANDIDATES][0]

    def _through(
        self,
        memory: SharedMemory,
        region: Region,
        model: DetectorModel,
        image: Pixels,
        request: DetectRequest,
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

        def once(server: int) -> Steps[Any]:
            return memory.ask(
                server,
                region,
                lambda transport, left: transport.infer(shared, left),
                lambda transport, left: transport.infer(inline, left),
                deadline,
            )

        outputs = yield from self._cluster.attempt(once, deadline)
        return ratio, outputs[CANDIDATES][0]

    def _learn(self, deadline: Deadline) -> Steps[DetectorModel]:
        """Finds detector and thresholds in the ensemble's configuration.

        Raises:
            ModelNotFound: The model is no ensemble with a detector in it.
        """
        config = yield from self._config(self._ensemble, deadline)
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        detector = next((step["model_name"] for step in steps if CANDIDATES in step.get("output_map", {})), None)
        after = next((step["model_name"] for step in steps if CANDIDATES in step.get("input_map", {})), None)
        if detector is None or after is None:
            raise ModelNotFound(
                f"model '{self._ensemble}' has no step that gives '{CANDIDATES}' and one that takes them, as the "
                "detection service has: send encoded images instead (transport='encoded')"
            )
        metadata = yield from self._cluster.ask(
            lambda transport, left: transport.model_metadata(detector, left), deadline
        )
        defaults = _thresholds((yield from self._config(after, deadline)))
        return _detector_model(detector, metadata, defaults)

    def _config(self, model: str, deadline: Deadline) -> Steps[Json]:
        config: Json = yield from self._cluster.ask(
            lambda transport, left: transport.model_config(model, left), deadline
        )
        return config


def _infer_request(model: DetectorModel, tensor: Any, request: DetectRequest) -> InferRequest:
    return InferRequest(model.name, {model.image_input: tensor}, (CANDIDATES,), cancellation=request.cancellation)


def _detector_model(name: str, metadata: Json, defaults: Thresholds) -> DetectorModel:
    try:
        (image,), (candidates,) = metadata["inputs"], metadata["outputs"]
        _, height, width, channels = map(int, image["shape"])
        _, count, fields = map(int, candidates["shape"])
        if (image["datatype"], channels, fields) != ("UINT8", 3, 6) or min(height, width) < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ModelNotFound(
            f"model '{name}' is no detector to send pixels to: it has inputs {metadata.get('inputs')} and outputs "
            f"{metadata.get('outputs')}, expected UINT8 [n, H, W, 3] and FP32 [n, K, 6]"
        ) from None
    bounded = replace(defaults, max_det=min(defaults.max_det, count))
    return DetectorModel(name, image["name"], height, width, count, bounded)


def _thresholds(config: Json) -> Thresholds:
    """The defaults as the last step's parameters set them."""
    parameters: Mapping[str, Json] = config.get("parameters", {})
    texts = {name: parameters.get(name.upper(), {}).get("string_value", "") for name in ("conf", "iou", "max_det")}
    given: dict[str, Parameter] = {
        name: int(text) if name == "max_det" else float(text) for name, text in texts.items() if text
    }
    return replace(Thresholds(), **given)  # type: ignore[arg-type]
