"""The pen that draws things as polygons, and the light that falls on them. A thing drawn is a sprite.

Every thing is drawn in unit coordinates, x to the right and y down, its longer side from -1 to 1. `Pen` turns, flips
and scales them to pixels. Drawing is done at two to four times the size and averaged down, so that edges are smooth and
the share of a pixel that a thing covers is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Image = NDArray[np.uint8]
# Factors on a thing's colour from x, y seen from the picture and x in its own frame; all FP32 [h, w].
Light = Callable[[Floats, Floats, Floats], Floats]

BLACK, WHITE = (25.0, 25.0, 25.0), (240.0, 240.0, 240.0)
# cv2.fillPoly takes corners in 1/16 of a pixel.
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Sprite:
    """A thing cut out of its background.

    Attributes:
        colour: FP32 [h, w, 3], BGR 0-255, already multiplied by the coverage.
        coverage: FP32 [h, w], the share of each pixel that the thing covers, 0 to 1.
    """

    colour: Floats
    coverage: Floats


class Pen:
    """Draws polygons in unit coordinates into a picture of their own.

    Attributes:
        rng: Decides everything that is left to chance.
        colour: The main colour, BGR 0-255.
        second: A colour that stands out from the main one.
    """

    def __init__(self, rng: np.random.Generator, size: float, angle: float, mirror: bool, colour: Colour) -> None:
        """A pen for a thing `size` pixels long, turned by `angle` radians, left and right swapped if `mirror`."""
        self.rng = rng
        self.colour = colour
        self.second = contrasting(rng, colour)
        self._scale = 4 if size < 80 else 3 if size < 160 else 2
        self._size = size
        # Long enough for the diagonal of the unit square, with room for an outline.
        self._side = int(np.ceil(size * 1.5)) + 4
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        stretch = np.array([-1.0 if mirror else 1.0, rng.uniform(0.94, 1.0)])
        self._matrix = turn * stretch * (size / 2)
        self._pixels: Image = np.zeros((self._side * self._scale, self._side * self._scale, 4), np.uint8)

    def fill(self, *outlines: Points, colour: Colour | None = None) -> None:
        """Fills polygons [n, 2]; where two of one call overlap, there is a hole."""
        cv2.fillPoly(self._pixels, self._corners(outlines), self._ink(colour), shift=_SUBPIXEL_BITS)

    def stroke(self, line: Points, width: float, colour: Colour | None = None, closed: bool = False) -> None:
        """Draws along a line [n, 2], `width` in unit coordinates."""
        thickness = max(1, round(width * self._size / 2 * self._scale))
        corners = self._corners([line])
        cv2.polylines(self._pixels, corners, closed, self._ink(colour), thickness, shift=_SUBPIXEL_BITS)

    def cut(self, light: Light) -> Sprite:
        """Finishes: averages down, shades, and cuts off the empty margin.

        Args:
            light: From where every pixel lies to factors on the colour, FP32 [h, w]. It is given x, y seen from the
                picture, and x in the thing's own frame; about -1 to 1, each FP32 [h, w].
        """
        small = cv2.resize(self._pixels, (self._side, self._side), interpolation=cv2.INTER_AREA)
        rows, columns = np.flatnonzero(small[..., 3].any(1)), np.flatnonzero(small[..., 3].any(0))
        top, left = int(rows[0]), int(columns[0])
        part = small[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.float32)
        y, x = np.mgrid[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.float32) + np.float32(
            0.5 - self._side / 2
        )
        inverse = np.linalg.inv(self._matrix).astype(np.float32)
        own_x = inverse[0, 0] * x + inverse[0, 1] * y
        factors = light(x * np.float32(2 / self._size), y * np.float32(2 / self._size), own_x)
        coverage = part[..., 3] / 255
        colour = np.clip(part[..., :3] * factors[..., None], 0, 255 * coverage[..., None])
        return Sprite(colour.astype(np.float32), coverage)

    def _corners(self, outlines: Sequence[Points]) -> list[Any]:
        scale = self._scale * (1 << _SUBPIXEL_BITS)
        # OpenCV's pixel centres lie at whole numbers, hence the half pixel.
        offset = self._side / 2 * scale - (1 << _SUBPIXEL_BITS) / 2
        return [np.round(points @ self._matrix.T * scale + offset).astype(np.int32) for points in outlines]

    def _ink(self, colour: Colour | None) -> tuple[float, float, float, float]:
        return (*(self.colour if colour is None else colour), 255.0)


def contrasting(rng: np.random.Generator, other: Colour, saturation: tuple[float, float] = (0.4, 1.0)) -> Colour:
    """A random colour that is easy to tell from another one, BGR 0-255."""
    best, widest = WHITE, -1.0
    for _ in range(4):
        hue, strength, value = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(0.45, 1.0)
        # HSV to BGR: each channel is a trapezoid over the hue, a third of a turn apart.
        channels = (min(max(abs((hue + turn) % 6 - 3) - 1, 0.0), 1.0) for turn in (2, 4, 0))
        blue, green, red = (float(255 * value * (1 - strength + strength * channel)) for channel in channels)
        distance = math.dist((blue, green, red), other)
        if distance > widest:
            best, widest = (blue, green, red), distance
        if distance > 110:
            break
    return best


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor below 1) or lighter."""
    blue, green, red = (float(min(255.0, channel * factor)) for channel in colour)
    return blue, green, red


def oval(x: float, y: float, a: float, b: float, start: float = 0, stop: float = 360, count: int = 48) -> Points:
    """Points [count, 2] on an ellipse of half axes a and b around (x, y), from `start` to `stop` degrees."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)


def polygon(corners: int, radius: float, turn: float) -> Points:
    """The corners [n, 2] of a regular polygon, the first one at `turn` degrees."""
    return oval(0, 0, radius, radius, turn, turn + 360 * (corners - 1) / corners, corners)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """The corners [4, 2] of a rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def flat_light(rng: np.random.Generator) -> Light:
    """A little brighter at the top; sometimes even."""
    slope = np.float32(rng.choice([0.0, 0.08, 0.16]))
    return lambda x, y, own_x: 1 - slope * y


def round_light(rng: np.random.Generator) -> Light:
    """A sphere lit from the upper left or right, with a highlight."""
    side, shine = rng.uniform(-0.6, 0.6), rng.uniform(0.0, 0.9)

    def light(x: Floats, y: Floats, own_x: Floats) -> Floats:
        depth = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        facing = np.clip(side * x - 0.55 * y + 0.75 * depth, 0, 1)
        return np.asarray(0.35 + 0.75 * facing + shine * facing**24, np.float32)

    return light


def tube_light(rng: np.random.Generator) -> Light:
    """An upright cylinder lit from one side."""
    side = np.float32(rng.uniform(-0.5, 0.5))
    return lambda x, y, own_x: np.asarray(1.1 - 0.55 * (own_x - side) ** 2, np.float32)
