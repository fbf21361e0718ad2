"""What things lie on: gradients, clouds, stripes, tiles, wood and a horizon, with loose clutter on top."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from training.sprites import Floats, Image


def background(rng: np.random.Generator, height: int, width: int) -> Image:
    """A random background, UINT8 [height, width, 3], BGR; muted colours, none of the shapes that are to be found."""
    paint = _KINDS[rng.integers(len(_KINDS))]
    image = paint(rng, height, width)
    if rng.random() < 0.4:
        _clutter(rng, image)
    return image


def clouds(rng: np.random.Generator, height: int, width: int, finest: float = 12) -> Floats:
    """Smooth noise of several scales, the finest about `finest` pixels, FP32 [height, width], 0 to 1."""
    cell, weight = float(max(height, width)) / 2, 1.0
    total: Floats = np.zeros((2, 2), np.float32)
    while cell > finest:
        grid = rng.random((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
        # Three pixels to a cell are enough to show it; only the sum is brought to full size.
        size = (int(width / cell * 3) + 1, int(height / cell * 3) + 1)
        total = cv2.resize(total, size) + np.float32(weight) * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2.5, weight * 0.55
    low, high = float(total.min()), float(total.max())
    return np.asarray(cv2.resize((total - low) / (high - low), (width, height)), np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> Image:
    return _mix(_ramp(rng, height, width), _muted(rng), _muted(rng))


def _mottled(rng: np.random.Generator, height: int, width: int) -> Image:
    return _mix(clouds(rng, height, width, rng.uniform(3, 20)), _muted(rng), _muted(rng))


def _stripes(rng: np.random.Generator, height: int, width: int) -> Image:
    wave = np.sin(_ramp(rng, height, width) * np.float32(rng.uniform(10, 90)))
    if rng.random() < 0.5:  # a plaid
        wave = (wave + np.sin(_ramp(rng, height, width) * np.float32(rng.uniform(10, 90)))) / 2
    return _mix(np.clip(wave * np.float32(rng.uniform(0.5, 4)) / 2 + 0.5, 0, 1), *_neighbours(rng))


def _tiles(rng: np.random.Generator, height: int, width: int) -> Image:
    side = int(rng.integers(24, 110))
    rows, columns = height // side + 2, width // side + 2
    shades = rng.normal(0, 0.12, (rows, columns)).astype(np.float32)
    if rng.random() < 0.4:  # a chequerboard
        shades += np.float32(0.5) * (np.indices((rows, columns)).sum(axis=0) % 2)
    y, x = np.arange(height) + rng.integers(side), np.arange(width) + rng.integers(side)
    pattern = shades[(y // side)[:, None], (x // side)[None, :]] + 0.3
    joint = ((y % side) < 2)[:, None] | ((x % side) < 2)[None, :]
    pattern[joint] -= rng.choice([0.0, 0.3])
    return _mix(pattern, *_neighbours(rng))


def _wood(rng: np.random.Generator, height: int, width: int) -> Image:
    rings = _ramp(rng, height, width) * np.float32(rng.uniform(5, 20)) + 4 * clouds(rng, height, width, 40)
    pattern = rings % 1 * 0.6 + 0.4 * clouds(rng, height, width, 6)
    dark = np.array([rng.uniform(30, 80), rng.uniform(60, 110), rng.uniform(100, 150)], np.float32)
    return _mix(pattern, dark, dark * np.float32(rng.uniform(1.2, 1.6)))


def _horizon(rng: np.random.Generator, height: int, width: int) -> Image:
    line = int(height * rng.uniform(0.3, 0.7))
    sky = _mix(_ramp(rng, line, width), _muted(rng), _muted(rng))
    ground = _mix(clouds(rng, height - line, width), _muted(rng), _muted(rng))
    return np.concatenate([sky, ground])


_KINDS: tuple[Callable[[np.random.Generator, int, int], Image], ...] = (
    _gradient,
    _mottled,
    _stripes,
    _tiles,
    _wood,
    _horizon,
)


def _clutter(rng: np.random.Generator, image: Image) -> None:
    """Draws lines and four-sided scraps of paper into an image."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(2, 9)):
        colour = tuple(float(channel) for channel in _muted(rng))
        points = rng.uniform(-0.1, 1.1, (4, 2)) * [width, height]
        if rng.random() < 0.5:
            start, stop = points[:2].astype(int).tolist()
            cv2.line(image, start, stop, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
            continue
        scrap = points[0] + (points - points.mean(axis=0)) * rng.uniform(0.05, 0.4)
        cv2.fillPoly(image, [cv2.convexHull(scrap.astype(np.int32))], colour, cv2.LINE_AA)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """FP32 [height, width] from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(angle))
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(angle))
    return np.asarray((down[:, None] + across[None, :]) / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5, np.float32)


def _mix(share: Floats, first: Floats, second: Floats) -> Image:
    """A picture UINT8 [h, w, 3] from the share FP32 [h, w] of the second colour, clipped to 0..1."""
    # One look-up per pixel instead of arithmetic on three floats.
    steps = np.linspace(0, 1, 256)[:, None]
    table: Image = np.clip(first + steps * (second - first), 0, 255).astype(np.uint8)
    mixed: Image = table[cv2.convertScaleAbs(np.maximum(share, 0), alpha=255)]
    return mixed


def _muted(rng: np.random.Generator) -> Floats:
    """A colour of low saturation, BGR 0-255."""
    grey = rng.uniform(30, 225)
    return np.asarray(grey + rng.uniform(-45, 45, 3), np.float32)


def _neighbours(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two colours that are not far apart."""
    first = _muted(rng)
    return first, first + rng.uniform(-60, 60, 3).astype(np.float32)
