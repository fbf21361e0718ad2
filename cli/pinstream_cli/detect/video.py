"""Videos and cameras through OpenCV: frames in, annotated videos out."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinstream_client import InvalidImage, PinstreamError
from pinstream_client.drawing import require_opencv

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
# Most cameras and containers that keep no frame rate run at this one.
_USUAL_FPS = 30.0
_CODECS = {".avi": "MJPG"}


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video: uint8 [height, width, 3] in BGR order, its number from 0, and its time in seconds."""

    pixels: NDArray[np.uint8]
    number: int
    time_s: float


@dataclass(frozen=True, eq=False)
class Video:
    """A video file or a camera.

    Attributes:
        name: What it is called in every output.
        target: What OpenCV opens: a path, or a camera's number.
        stem: Name of its annotated video, without a suffix.
        fps: Frames a second.
        frame_count: How many frames the file says it has; None for a camera and where it does not say.
        problem: Why it cannot be read, or None.
    """

    name: str
    target: str | int
    stem: str
    fps: float = _USUAL_FPS
    frame_count: int | None = None
    problem: PinstreamError | None = None

    @classmethod
    def camera(cls, index: int) -> Video:
        """A camera by its number. It is opened when its first frame is wanted."""
        require_opencv()
        return cls(f"camera {index}", index, f"camera-{index}")

    @classmethod
    def file(cls, path: Path) -> Video:
        """A video file; one that cannot be read carries its problem.

        Raises:
            MissingExtra: OpenCV is not installed.
        """
        cv2 = require_opencv()
        try:
            with _opened(str(path)) as capture:
                frame_count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
                fps = capture.get(cv2.CAP_PROP_FPS)
        except PinstreamError as error:
            return cls(str(path), str(path), path.stem, frame_count=0, problem=error)
        return cls(
            str(path),
            str(path),
            path.stem,
            fps if _usable(fps) else _USUAL_FPS,
            frame_count if frame_count > 0 else None,
        )

    @property
    def is_camera(self) -> bool:
        """Whether it goes on until it is stopped."""
        return isinstance(self.target, int)

    def frames(self) -> Iterator[Frame]:
        """The frames in their order; none of a file that has a problem.

        Raises:
            InvalidImage: The camera cannot be opened.
        """
        if self.problem is not None:
            return
        with _opened(self.target) as capture:
            started = time.monotonic()
            for number in itertools.count():
                there, pixels = capture.read()
                if not there:
                    return
                # A camera's frames come when they come; those that nobody fetches are lost.
                time_s = time.monotonic() - started if self.is_camera else number / self.fps
                yield Frame(np.asarray(pixels, np.uint8), number, time_s)


class VideoFile:
    """An annotated video, opened with the size of its first frame.

    Args:
        path: Where it is written; the suffix chooses the container (.mp4 or .avi).
        fps: Frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._writer: Any = None

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Adds a frame: uint8 [height, width, 3] in BGR order.

        Raises:
            PinstreamError: OpenCV cannot write it.
        """
        cv2 = require_opencv()
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*_CODECS.get(self.path.suffix.lower(), "mp4v"))
            self._writer = cv2.VideoWriter(str(self.path), code, self._fps, (pixels.shape[1], pixels.shape[0]))
            if not self._writer.isOpened():
                raise PinstreamError(f"OpenCV cannot write the video {self.path}: use a name that ends in .mp4 or .avi")
        self._writer.write(pixels)

    def close(self) -> None:
        """Completes the file; what was written until now can be played."""
        if self._writer is not None:
            self._writer.release()


def is_video(path: Path) -> bool:
    """Whether the file's name says that it is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


@contextmanager
def _opened(target: str | int) -> Iterator[Any]:
    cv2 = require_opencv()
    # OpenCV's and FFmpeg's own lines tell a user nothing that the error does not.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.getLogLevel() if hasattr(cv2, "getLogLevel") else None
    if level is not None:
        cv2.setLogLevel(0)
    capture = cv2.VideoCapture(target)
    try:
        if not capture.isOpened():
            raise InvalidImage(_why_not(target))
        yield capture
    finally:
        capture.release()
        if level is not None:
            cv2.setLogLevel(level)


def _why_not(target: str | int) -> str:
    if isinstance(target, int):
        return (
            f"no camera {target}: expected the number of a camera that no other program uses, as in /dev/video{target}"
        )
    if not Path(target).is_file():
        return f"cannot read video file {target}: no such file"
    return f"cannot read video file {target}: OpenCV finds no video in it"


def _usable(fps: float) -> bool:
    return 0 < fps < 1000
