"""Annotated pictures and videos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pinstream_cli.detect.sources import Item
from pinstream_cli.detect.video import Video, VideoFile
from pinstream_cli.errors import CommandError
from pinstream_client import Detections, PinstreamError
from pinstream_client.drawing import require_opencv


class Annotator:
    """Draws results below one directory: a PNG for each image, an MP4 for each video.

    A directory that was named keeps its tree; of files with the same name the later ones are numbered. An image that
    is an input of the same run is never overwritten.

    Args:
        directory: Where they go; made if it is not there.
        taken: Files that must stay as they are.

    Raises:
        MissingExtra: OpenCV is not installed.
        CommandError: The directory cannot be made.
    """

    def __init__(self, directory: Path, taken: Iterable[Path] = ()) -> None:
        require_opencv()
        self._directory = directory
        self._taken = {path.resolve() for path in taken}
        self._videos: dict[Video, VideoFile] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"cannot make the directory {directory}: {error.strerror or error}") from None

    def keep(self, path: Path) -> None:
        """Leaves alone what an earlier run has written."""
        self._taken.add(path.resolve())

    def write(self, item: Item, detections: Detections) -> Path:
        """Draws one image's objects; returns the picture's or the video's file.

        Raises:
            PinstreamError: The image cannot be drawn on, or the file cannot be written.
        """
        drawn = detections.draw(item.image)
        if item.video is not None:
            video = self._videos.get(item.video)
            if video is None:
                video = self._videos[item.video] = VideoFile(self._unused(item.place, ".mp4"), item.video.fps)
            video.write(drawn)
            return video.path
        target = self._unused(item.place, ".png")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _, png = require_opencv().imencode(".png", drawn)
            target.write_bytes(png.tobytes())
        except OSError as error:
            raise PinstreamError(f"cannot write {target}: {error.strerror or error}") from None
        return target

    def close(self) -> None:
        """Completes the videos."""
        for video in self._videos.values():
            video.close()

    def _unused(self, place: Path, suffix: str) -> Path:
        """``place.png``; ``place-2.png`` and so on where that is taken."""
        target, number = self._directory / f"{place}{suffix}", 1
        while target.resolve() in self._taken:
            number += 1
            target = self._directory / f"{place}-{number}{suffix}"
        self._taken.add(target.resolve())
        return target
