"""Boxes and labels on a picture. The one module that needs OpenCV, and only when it draws."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .images import ImageLike, as_bgr
from .images import require_opencv as require_opencv

if TYPE_CHECKING:
    from .detections import Detection, Detections

# Steps of the golden ratio around the colour circle keep the classes that come next to each other far apart.
_GOLDEN_RATIO = 0.6180339887


def draw(image: ImageLike, detections: Detections) -> NDArray[np.uint8]:
    """Draws onto a copy of the picture; see `Detections.draw`."""
    cv2 = require_opencv()
    canvas = np.array(as_bgr(image, "draw on"), order="C")  # never the caller's own
    height, width = canvas.shape[:2]
    line = max(1, round(min(height, width) / 300))
    scale = max(0.4, min(height, width) / 1000)
    captions: list[_Caption] = []
    for item in detections:
        captions.append(_place(cv2, item, captions, (width, height), line, scale))
    # Best scores last, so that they lie on top where there is no room for all.
    drawn = list(zip(detections, captions, strict=True))[::-1]
    # A line further out is not seen, and OpenCV has 32 bits for where it is.
    beyond = np.array((width, height) * 2) + 2 * line
    for item, _ in drawn:
        x1, y1, x2, y2 = (round(float(value)) for value in np.clip(item.box, -2 * line, beyond))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), class_colour(item.class_id), line, cv2.LINE_AA)
    for item, caption in drawn:
        _write(cv2, canvas, caption, class_colour(item.class_id), line, scale)
    return canvas


def class_colour(class_id: int) -> tuple[int, int, int]:
    """The same BGR colour for the same class in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN_RATIO) % 1.0, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


@dataclass(frozen=True)
class _Caption:
    """Text and the rectangle it is written into, in pixels."""

    text: str
    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other: _Caption) -> int:
        """Pixels that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


def _place(
    cv2: Any, item: Detection, taken: Sequence[_Caption], size: tuple[int, int], line: int, scale: float
) -> _Caption:
    """A caption at an edge of its box and within the picture, where it hides as little of others as can be."""
    text = f"{item.name} {item.score:.2f}".encode("ascii", "replace").decode()  # OpenCV's font has ASCII only
    (text_width, text_height), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, _weight(scale))
    width, height = text_width + 2 * line, text_height + descent + 2 * line
    x1, y1, x2, y2 = (round(float(value)) for value in item.box)

    def at(left: int, top: int) -> _Caption:
        left, top = max(min(left, size[0] - width), 0), max(min(top, size[1] - height), 0)
        return _Caption(text, left, top, left + width, top + height)

    # On the box first; inside it, under it, and the same at its right.
    spots = [at(left, top) for left in (x1, x2 - width) for top in (y1 - height, y1, y2, y2 - height)]
    if y1 < height:  # above it there is no room
        spots = spots[1:]
    return min(spots, key=lambda spot: sum(spot.overlap(other) for other in taken))


def _write(
    cv2: Any, canvas: NDArray[np.uint8], caption: _Caption, colour: tuple[int, int, int], line: int, scale: float
) -> None:
    cv2.rectangle(canvas, (caption.left, caption.top), (caption.right, caption.bottom), colour, cv2.FILLED)
    (_, text_height), _ = cv2.getTextSize(caption.text, cv2.FONT_HERSHEY_SIMPLEX, scale, _weight(scale))
    origin = (caption.left + line, caption.top + line + text_height)
    text = (cv2.FONT_HERSHEY_SIMPLEX, scale, _readable_on(colour), _weight(scale), cv2.LINE_AA)
    cv2.putText(canvas, caption.text, origin, *text)


def _weight(scale: float) -> int:
    return max(1, round(scale * 1.5))


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    blue, green, red = colour
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red
    return (0, 0, 0) if luminance > 130 else (255, 255, 255)
