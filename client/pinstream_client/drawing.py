"""Boxes and labels on a picture. The one module that needs OpenCV, and only when it draws."""

from __future__ import annotations

import colorsys
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
    # Best scores last, so that their labels lie on top.
    for item in reversed(list(detections)):
        _draw_one(cv2, canvas, item, line, scale)
    return canvas


def class_colour(class_id: int) -> tuple[int, int, int]:
    """The same BGR colour for the same class in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN_RATIO) % 1.0, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def _draw_one(cv2: Any, canvas: NDArray[np.uint8], item: Detection, line: int, scale: float) -> None:
    height, width = canvas.shape[:2]
    colour = class_colour(item.class_id)
    x1, y1, x2, y2 = (round(float(value)) for value in item.box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, line, cv2.LINE_AA)

    text = f"{item.name} {item.score:.2f}".encode("ascii", "replace").decode()  # OpenCV's font has ASCII only
    weight = max(1, round(scale * 1.5))
    (text_width, text_height), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    label_height = text_height + descent + 2 * line
    # The label sits on the box, or inside it at the picture's upper edge, and never leaves the picture.
    left = min(max(x1, 0), max(width - text_width - 2 * line, 0))
    top = min(y1 - label_height if y1 >= label_height else y1, height - label_height)
    top = max(top, 0)
    corner = (left + text_width + 2 * line, top + label_height)
    cv2.rectangle(canvas, (left, top), corner, colour, cv2.FILLED)
    origin = (left + line, top + line + text_height)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, _readable_on(colour), weight, cv2.LINE_AA)


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    blue, green, red = colour
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red
    return (0, 0, 0) if luminance > 130 else (255, 255, 255)
