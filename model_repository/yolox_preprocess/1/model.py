"""The first step of the yolox ensemble: encoded images in, the detector's input out."""

from __future__ import annotations

import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

# What the steps share lies with the ensemble.
sys.path.append(str(Path(__file__).parents[2] / "yolox" / "1"))

from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode, decode_to_fit, mute_decoders, prepare_process
from yolox_steps.detector import DEFAULT_NAME, read_detector
from yolox_steps.errors import RequestError, of_image
from yolox_steps.letterbox import letterbox
from yolox_steps.parameters import Parameters, Preprocessing
from yolox_steps.places import Places, region_name, remove_dead
from yolox_steps.replies import config_parameters, reply_to_each

NICENESS = 10


class TritonPythonModel:
    """One instance: takes one request after the other, and the images of a request side by side."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Completes `images` from the detector's input."""
        parameters = config_parameters(auto_complete_model_config.as_dict())
        detector = read_detector(pb_utils.get_model_dir(), parameters.get("DETECTOR", DEFAULT_NAME))
        auto_complete_model_config.add_output(
            {"name": "images", "data_type": "TYPE_UINT8", "dims": [detector.height, detector.width, 3]}
        )
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what the detector wants and what config.pbtxt allows."""
        model_config = json.loads(args["model_config"])
        config = config_parameters(model_config)
        self._detector = read_detector(pb_utils.get_model_dir(), config.get("DETECTOR", DEFAULT_NAME))
        self._settings = Preprocessing.of_config(config, DEFAULT_MAX_PIXELS)
        self._parameters = Parameters(config, self._detector.candidates)
        self._threads = ThreadPoolExecutor(self._settings.threads)
        self._image_shape = (self._detector.height, self._detector.width, 3)
        self._image_bytes = math.prod(self._image_shape)
        self._places = self._make_places(model_config)
        prepare_process()
        mute_decoders()
        # What has been begun is finished before more is: else, under more load than the cores can do, decoding pictures
        # would take the time from the detector that they are for.
        os.nice(NICENESS)

    def finalize(self) -> None:
        """Ends the threads, and takes back what pictures were left in."""
        self._threads.shutdown()
        if self._places:
            self._places.close()

    def _make_places(self, model_config: dict[str, Any]) -> Places | None:
        """Shared memory for pictures; None where they go through Triton, as for want of room in /dev/shm."""
        remove_dead()
        # Triton's cache gives an answer more than once, and what that refers to is read once.
        cached = model_config.get("response_cache", {}).get("enable")
        name = None if cached else region_name()
        try:
            return Places(name, self._image_bytes, read_within_s=self._settings.read_within_s) if name else None
        except OSError as error:
            pb_utils.Logger.log_info(f"pictures go to the detector through Triton: {error}")
            return None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request by itself."""
        return reply_to_each(requests, self._preprocess)

    def _preprocess(self, request: Any) -> list[Any]:
        # They are for the last step; read here too, so that a wrong one does not cost a run of the detector first.
        self._parameters.of_request(request.parameters())
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        if encoded.ndim != 2:  # Triton takes a batch of 0 for a request without a batch dimension
            raise RequestError(f"found image of shape {list(encoded.shape)}; expected [n, 1] with n of at least 1")
        wanted = request.requested_output_names()
        # What is asked for itself is not left anywhere as well, and what nobody is told of would stay there.
        refers = "images_at" in wanted and "images" not in wanted
        held = self._places.hold(len(encoded)) if self._places and refers else None
        images = held.items if held else np.empty((len(encoded), self._image_bytes), np.uint8)
        try:
            letterboxes = self._letterbox_all(encoded[:, 0], images.reshape(-1, *self._image_shape))
        except BaseException:
            if held and self._places:
                self._places.give_back(held)
            raise
        if held and self._places:
            self._places.filled(held)
        outputs = {
            "images_at": held.references if held else images,
            "images": images.reshape(-1, *self._image_shape),
            "letterbox": letterboxes,
        }
        return [pb_utils.Tensor(name, outputs[name]) for name in wanted]

    def _decode(self, data: bytes) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """The image, smaller than it is where that was asked for and is enough, and its full height and width."""
        if self._settings.reduced:
            return decode_to_fit(data, self._settings.max_pixels, self._detector.height, self._detector.width)
        image = decode(data, self._settings.max_pixels)
        return image, (image.shape[0], image.shape[1])

    def _letterbox_all(
        self, encoded: npt.NDArray[np.object_], images: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """Fills `images` [n, H, W, 3] with n encoded images, and makes `letterbox` [n, 3]."""
        letterboxes = np.empty((len(encoded), 3), np.float32)

        def letterbox_one(index: int) -> None:
            try:
                image, full = self._decode(encoded[index])
            except RequestError as error:
                raise RequestError(of_image(index, len(encoded), str(error))) from None
            letterboxes[index] = letterbox(image, images[index], full), full[1], full[0]

        # A single image gains nothing from another thread. OpenCV releases the GIL while it decodes and resizes.
        each = map if len(encoded) == 1 else self._threads.map
        try:
            for _ in each(letterbox_one, range(len(encoded))):
                pass  # results are in their arrays; going through them raises the first error there was
        except BaseException:
            # Others of the request are still being written to their places, which are to be free now.
            self._threads.shutdown(cancel_futures=True)
            self._threads = ThreadPoolExecutor(self._settings.threads)
            raise
        return letterboxes
