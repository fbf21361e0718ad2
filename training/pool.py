"""The pictures as training wants them: letterboxed, made by other processes while training runs, kept on the device."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.shapes import MOST_THINGS, Picture, render
from training.sprites import Floats, Image

PAD_VALUE = 114
# Pictures that a process makes in one go.
BLOCK = 32


@dataclass(frozen=True)
class Arrays:
    """Pictures in host memory that all processes share.

    Attributes:
        images: UINT8 [n, size, size, 3], BGR, letterboxed.
        boxes: FP32 [n, MOST_THINGS, 4], x1, y1, x2, y2 in pixels of `images`.
        labels: INT64 [n, MOST_THINGS], -1 from the last thing on.
        extents: FP32 [n, 2], width and height of the part of each image that is not padding.
    """

    images: Image
    boxes: Floats
    labels: NDArray[np.int64]
    extents: Floats

    def put(self, index: int, picture: Picture) -> None:
        """Letterboxes a picture into a place."""
        size = self.images.shape[1]
        self.images[index], ratio, self.extents[index] = letterbox(picture.image, size)
        count = len(picture.labels)
        self.boxes[index, :count] = picture.boxes * ratio
        self.labels[index] = -1
        self.labels[index, :count] = picture.labels


def letterbox(image: Image, size: int) -> tuple[Image, float, tuple[int, int]]:
    """YOLOX's way to bring an image [h, w, 3] to [size, size, 3]: scaled, in the top-left corner, the rest grey 114.

    Returns:
        The result, the ratio it was scaled by, and its width and height without the padding.
    """
    ratio = min(size / image.shape[0], size / image.shape[1])
    height, width = int(image.shape[0] * ratio), int(image.shape[1] * ratio)
    canvas: Image = np.full((size, size, 3), PAD_VALUE, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, ratio, (width, height)


class PicturePool:
    """Pictures on a device, UINT8 images and all; their number grows until there are `capacity`.

    Attributes:
        capacity: How many there will be.
        count: How many there are by now; they do not change any more.
        images: UINT8 [capacity, size, size, 3], BGR; likewise `boxes`, `labels` and `extents` as in `Arrays`.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    extents: Tensor

    def __init__(self, first_seed: int, capacity: int, size: int, processes: int) -> None:
        """Starts to make pictures in other processes.

        They are forks, which see the same memory and need not import PyTorch; so this comes before CUDA is first used.
        """
        shapes = ((capacity, size, size, 3), (capacity, MOST_THINGS, 4), (capacity, MOST_THINGS), (capacity, 2))
        self._host = Arrays(*map(_shared, shapes, (np.uint8, np.float32, np.int64, np.float32)))
        self.capacity, self.count = capacity, 0
        self._fault: BaseException | None = None
        # Before the fork: a child would wait for ever for OpenCV's threads, of which it has the list and not one.
        cv2.setNumThreads(1)
        self._grown = threading.Condition()
        self._processes = get_context("fork").Pool(processes, _start_worker, (self._host, first_seed))
        self._blocks = self._processes.imap(_make_block, range(0, capacity, BLOCK))

    def move_to(self, device: torch.device) -> None:
        """Starts to copy pictures to a device as they are made."""
        for name in ("images", "boxes", "labels", "extents"):
            setattr(self, name, torch.empty_like(torch.from_numpy(getattr(self._host, name)), device=device))
        threading.Thread(target=self._copy, args=(device,), daemon=True).start()

    def wait(self, count: int) -> None:
        """Returns as soon as there are `count` pictures, or all.

        Raises:
            RuntimeError: A picture could not be made, so there will be no more of them.
        """
        with self._grown:
            self._grown.wait_for(lambda: self._fault is not None or self.count >= min(count, self.capacity))
            if self.count < min(count, self.capacity):
                raise RuntimeError(f"only {self.count} of {self.capacity} pictures could be made") from self._fault

    def _copy(self, device: torch.device) -> None:
        try:
            self._copy_blocks(device)
        except Exception as error:  # whoever waits is to hear of it, whatever it is
            with self._grown:
                self._fault = error
                self._grown.notify_all()
        self._processes.close()

    def _copy_blocks(self, device: torch.device) -> None:
        # A stream of its own: on the one that trains, copies would wait for all work that is queued there.
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for start in self._blocks:
            stop = min(start + BLOCK, self.capacity)
            with torch.cuda.stream(stream):
                for name in ("images", "boxes", "labels", "extents"):
                    getattr(self, name)[start:stop].copy_(torch.from_numpy(getattr(self._host, name)[start:stop]))
            if stream is not None:
                stream.synchronize()
            with self._grown:
                self.count = stop
                self._grown.notify_all()


def _shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of zeros in anonymous memory, which forked processes share."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)


def _start_worker(arrays: Arrays, first_seed: int) -> None:
    global _worker
    _worker = (arrays, first_seed)


def _make_block(start: int) -> int:
    arrays, first_seed = _worker
    for index in range(start, min(start + BLOCK, len(arrays.images))):
        arrays.put(index, render(first_seed + index))
    return start


_worker: tuple[Arrays, int]
