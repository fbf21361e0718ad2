"""The dozen classes: how each is drawn. Their order is the order of the model's classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from training.sprites import (
    BLACK,
    WHITE,
    Colour,
    Light,
    Pen,
    Points,
    Sprite,
    box,
    contrasting,
    flat_light,
    oval,
    polygon,
    round_light,
    shade,
    tube_light,
)


def draw(rng: np.random.Generator, label: int, size: float, background: Colour) -> Sprite:
    """Draws one thing.

    Args:
        rng: Decides how it looks and stands.
        label: Its class, an index into LABELS.
        size: Length of its longer side before it is turned, in pixels; 12 or more.
        background: The mean colour behind it, BGR 0-255; the thing's own differs from it.
    """
    tilt, paint = _THINGS[LABELS[label]]
    mirror = LABELS[label] in _MIRRORED and rng.random() < 0.5
    pen = Pen(rng, size, np.radians(rng.uniform(-tilt, tilt)), mirror, contrasting(rng, background))
    return pen.cut(paint(pen))


def _ball(pen: Pen) -> Light:
    pen.fill(oval(0, 0, 1, 1))
    pattern = pen.rng.integers(3)
    if pattern == 0:  # a beach ball: every other strip between two meridians
        edges = np.linspace(-1, 1, 7)
        for left, right in zip(edges[::2], edges[1::2], strict=False):
            pen.fill(np.concatenate([oval(0, 0, left, 1, -90, 90), oval(0, 0, right, 1, 90, -90)]), colour=pen.second)
    elif pattern == 1:  # a band
        pen.fill(np.concatenate([oval(0, 0.1, 1, 0.35, 6, 174), oval(0, -0.25, 1, 0.35, 174, 6)]), colour=pen.second)
    return round_light(pen.rng)


def _cube(pen: Pen) -> Light:
    yaw, pitch = np.radians(pen.rng.uniform(25, 65)), np.radians(pen.rng.uniform(22, 42))
    # The edges of a cube seen from above, in parallel projection; scaled so that the picture is 2 wide or high.
    edges = np.array(
        [[np.cos(yaw), np.sin(yaw) * np.sin(pitch)], [-np.sin(yaw), np.cos(yaw) * np.sin(pitch)], [0, np.cos(pitch)]]
    )
    extent = np.abs(edges).sum(axis=0).max()
    right, left, down = edges / extent * 2
    near = (right + left - down) / 2
    faces = [
        (near - right - left, right, left, 1.15),
        (near - right, right, down, 0.6),
        (near - left, left, down, 0.85),
    ]
    pattern = pen.rng.integers(3)
    for corner, u, v, brightness in faces:
        face = np.stack([u, v])
        pen.fill(corner + box(0, 0, 1, 1) @ face, colour=shade(pen.colour, brightness))
        if pattern == 0:  # a die
            for x, y in ((0.5, 0.5), (0.22, 0.22), (0.78, 0.78), (0.22, 0.78), (0.78, 0.22))[: pen.rng.integers(1, 6)]:
                pen.fill(corner + oval(x, y, 0.1, 0.1, count=16) @ face, colour=shade(pen.second, brightness))
        elif pattern == 1:  # a parcel
            pen.fill(corner + box(0.4, 0, 0.6, 1) @ face, colour=shade(pen.second, brightness))
    return flat_light(pen.rng)


def _mug(pen: Pen) -> Light:
    left, right, top, bottom = -0.85, 0.45, -0.75, 0.75
    middle, half, lid = (left + right) / 2, (right - left) / 2, 0.2
    pen.fill(oval(right, 0.05, 0.5, 0.48), oval(right, 0.05, 0.3, 0.27), colour=shade(pen.colour, 0.85))
    rim = oval(middle, top, half, lid, 180, 0)
    pen.fill(np.concatenate([oval(middle, bottom, half, lid, 0, 180), rim]))
    if pen.rng.random() < 0.5:
        low, high = oval(middle, 0.45, half, lid, 0, 180), oval(middle, pen.rng.uniform(-0.3, 0.2), half, lid, 180, 0)
        pen.fill(np.concatenate([low, high]), colour=pen.second)
    pen.fill(oval(middle, top, half, lid), colour=shade(pen.colour, 1.3))
    pen.fill(oval(middle, top + 0.03, half * 0.86, lid * 0.75), colour=(30, 50, 80))
    return tube_light(pen.rng)


def _star(pen: Pen) -> Light:
    outer, inner = polygon(5, 1, -90), polygon(5, pen.rng.uniform(0.4, 0.52), -54)
    points = np.stack([outer, inner], axis=1).reshape(10, 2)
    pen.fill(points)
    if pen.rng.random() < 0.4:  # cut like a gem: one half of every ray is in the shade
        for tip, dent in zip(outer, inner, strict=True):
            pen.fill(np.stack([np.zeros(2), tip, dent]), colour=shade(pen.colour, 0.7))
    _outline(pen, points)
    return flat_light(pen.rng)


def _heart(pen: Pen) -> Light:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    points = np.stack([x / 16, -(y + 2.5) / 16], axis=1)
    pen.fill(points)
    _outline(pen, points)
    return round_light(pen.rng) if pen.rng.random() < 0.3 else flat_light(pen.rng)


def _arrow(pen: Pen) -> Light:
    neck, wing, shaft = pen.rng.uniform(-0.1, 0.35), pen.rng.uniform(0.6, 0.8), pen.rng.uniform(0.2, 0.32)
    notch = pen.rng.choice([-1.0, -0.75])
    upper = np.array([[notch, 0], [-1, -shaft], [neck, -shaft], [neck, -wing], [1, 0]])
    points = np.concatenate([upper, upper[3:0:-1] * [1, -1]])
    pen.fill(points)
    _outline(pen, points)
    return flat_light(pen.rng)


def _stop_sign(pen: Pen) -> Light:
    red = (pen.rng.uniform(10, 60), pen.rng.uniform(10, 50), pen.rng.uniform(165, 225))
    pen.fill(polygon(8, 1.08, 22.5), colour=WHITE)
    pen.fill(polygon(8, 0.98, 22.5), colour=red)
    for place, letter in zip((-0.6, -0.2, 0.2, 0.6), _STOP, strict=True):
        for line in letter:
            pen.stroke(line * [0.26, 0.3] + [place, 0], 0.12, WHITE)
    return flat_light(pen.rng)


def _warning_sign(pen: Pen) -> Light:
    ground, border = ((20, 195, 245), BLACK) if pen.rng.random() < 0.6 else (WHITE, (40, 30, 200))
    for inset, colour in ((0.0, border), (pen.rng.uniform(0.14, 0.2), ground)):
        corners = [oval(x, y, 0.14, 0.14, turn, turn + 120, 8) for x, y, turn in _CORNERS]
        # Towards the centre of gravity, so that the border is equally wide on all sides.
        pen.fill(np.concatenate(corners) * (1 - inset * 1.7) + [0, inset * 0.42], colour=colour)
    pen.fill(np.array([[-0.12, -0.3], [0.12, -0.3], [0.07, 0.28], [-0.07, 0.28]]), colour=BLACK)
    pen.fill(oval(0, 0.46, 0.1, 0.1), colour=BLACK)
    return flat_light(pen.rng)


# Centre x, y of the three rounded corners, and the angle in degrees where each begins.
_CORNERS = ((0.0, -0.72, -150.0), (0.86, 0.72, -30.0), (-0.86, 0.72, 90.0))


def _clock(pen: Pen) -> Light:
    face, ink = (WHITE, BLACK) if pen.rng.random() < 0.7 else (BLACK, WHITE)
    pen.fill(oval(0, 0, 1, 1))
    pen.fill(oval(0, 0, 0.84, 0.84), colour=face)
    for hour in range(12):
        direction = polygon(12, 1, 30 * hour)[0]
        pen.stroke(np.stack([direction * (0.6 if hour % 3 == 0 else 0.7), direction * 0.78]), 0.06, ink)
    for length, width in ((0.42, 0.12), (0.64, 0.09)):
        turn = pen.rng.uniform(0, 360)
        pen.stroke(np.stack([np.zeros(2), polygon(1, length, turn)[0]]), width, ink)
    pen.fill(oval(0, 0, 0.08, 0.08), colour=pen.colour)
    return flat_light(pen.rng)


def _key(pen: Pen) -> Light:
    metal = pen.rng.random() < 0.5
    colour = shade(((90, 190, 225), (195, 190, 185))[pen.rng.integers(2)], 1.0) if metal else pen.colour
    pen.fill(oval(-0.56, 0, 0.44, 0.44), oval(-0.62, 0, 0.2, 0.2), colour=colour)
    pen.fill(box(-0.2, -0.11, 1, 0.11), colour=colour)
    for start in (0.5, 0.8):
        pen.fill(box(start, 0.05, start + 0.17, pen.rng.uniform(0.32, 0.45)), colour=colour)
    return flat_light(pen.rng)


def _umbrella(pen: Pen) -> Light:
    pole = WHITE if sum(pen.colour) < 300 else (60, 60, 70)
    hook = oval(0.17, 0.78, 0.17, 0.2, 180, 10, 16)
    pen.stroke(np.concatenate([[[0.0, -0.9], [0.0, 0.78]], hook]), 0.1, pole)
    rise, brim, panels = 0.85, 0.0, 4
    cusps = np.linspace(-1, 1, panels + 1)
    for index, (left, right) in enumerate(pairwise(cusps)):
        ribs = [oval(0, brim, edge, rise, -90, 0, 24) for edge in (left, right)]
        scallop = oval((left + right) / 2, brim, (right - left) / 2, 0.12, 180, 360, 16)
        colour = pen.second if index % 2 else pen.colour
        pen.fill(np.concatenate([ribs[0], scallop, ribs[1][::-1]]), colour=colour)
    return flat_light(pen.rng)


def _digit(pen: Pen) -> Light:
    width, narrow = pen.rng.uniform(0.2, 0.46), np.array([pen.rng.uniform(0.75, 1.1), 0.88])
    lines = [line * narrow for line in _DIGITS[pen.rng.integers(10)]]
    if pen.rng.random() < 0.4:
        for line in lines:
            pen.stroke(line, width + 0.16, pen.second)
    for line in lines:
        pen.stroke(line, width)
    return flat_light(pen.rng)


def _outline(pen: Pen, points: Points) -> None:
    if pen.rng.random() < 0.4:
        pen.stroke(points, 0.08, pen.second, closed=True)


def _lines(*corners: tuple[float, float]) -> Points:
    return np.array(corners)


# Letters and digits as strokes, about 1 wide and 1.8 high: OpenCV's own fonts differ from version to version.
_LOWER_BOWL = oval(0, 0.45, 0.5, 0.45, -90, 150)
_SIX = (oval(0, 0.38, 0.48, 0.52), oval(0.42, 0.38, 0.9, 1.28, 180, 262))
_DIGITS: tuple[tuple[Points, ...], ...] = (
    (oval(0, 0, 0.5, 0.9),),
    (_lines((-0.32, -0.55), (0.05, -0.9), (0.05, 0.9)),),
    (np.concatenate([oval(0, -0.42, 0.48, 0.48, 180, 395), _lines((-0.48, 0.9), (0.5, 0.9))]),),
    (oval(0, -0.45, 0.45, 0.45, 200, 450), _LOWER_BOWL),
    (_lines((0.25, 0.9), (0.25, -0.9), (-0.5, 0.35), (0.55, 0.35)),),
    (np.concatenate([_lines((0.45, -0.9), (-0.35, -0.9), (-0.4, -0.05)), oval(-0.02, 0.35, 0.5, 0.55, -135, 145)]),),
    _SIX,
    (_lines((-0.5, -0.9), (0.5, -0.9), (-0.15, 0.9)),),
    (oval(0, -0.45, 0.4, 0.43), oval(0, 0.45, 0.48, 0.45)),
    tuple(-line for line in _SIX),
)
_STOP: tuple[tuple[Points, ...], ...] = (
    (np.concatenate([oval(0, -0.45, 0.45, 0.45, -30, -270), _LOWER_BOWL]),),
    (_lines((-0.5, -0.9), (0.5, -0.9)), _lines((0, -0.9), (0, 0.9))),
    (oval(0, 0, 0.5, 0.9),),
    (
        np.concatenate(
            [_lines((-0.4, 0.9), (-0.4, -0.9)), oval(0.05, -0.42, 0.45, 0.48, -90, 90), _lines((-0.4, 0.06))]
        ),
    ),
)

# For every class: how far it leans from upright at most, in degrees, and how it is drawn.
_THINGS: dict[str, tuple[float, Callable[[Pen], Light]]] = {
    "ball": (180, _ball),
    "cube": (25, _cube),
    "mug": (25, _mug),
    "star": (180, _star),
    "heart": (50, _heart),
    "arrow": (180, _arrow),
    "stop sign": (20, _stop_sign),
    "warning sign": (20, _warning_sign),
    "clock": (30, _clock),
    "key": (180, _key),
    "umbrella": (40, _umbrella),
    "digit": (25, _digit),
}
_MIRRORED = ("mug", "key", "umbrella")

LABELS = tuple(_THINGS)
