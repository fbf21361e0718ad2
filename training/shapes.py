"""Pictures of everyday things with exact boxes, any number of them, each from a seed of its own.

    python -m training.shapes --out held_out --count 200

writes a folder in COCO's format: the pictures, and `annotations.json`.

What is a box: the smallest one around all pixels of a thing that are seen, those that it covers by half or more and
that lie within the picture and under no other thing (COCO draws its boxes the same way). At least 60 % of every thing
is seen, so nothing without a box is left to be found, and every thing is at least 18 pixels long in a network of 416.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.backgrounds import background
from training.sprites import Floats, Image, Sprite
from training.things import LABELS, draw

__all__ = ["HELD_OUT_SEED", "LABELS", "SPLITS", "TRAINING_SEED", "Picture", "render", "render_many", "write_coco"]

# A split is a range of seeds; no training takes a million pictures.
TRAINING_SEED = 0
HELD_OUT_SEED = 1_000_000
SPLITS = {"training": TRAINING_SEED, "held-out": HELD_OUT_SEED}

MOST_THINGS = 14
# The longer side of a thing over that of the picture.
SMALLEST, LARGEST = 0.05, 0.5
LEAST_SEEN = 0.6
_TRIES = 8


@dataclass(frozen=True)
class Picture:
    """A picture and what is in it.

    Attributes:
        jpeg: The picture as a JPEG file.
        image: The same decoded, UINT8 [h, w, 3], BGR.
        boxes: FP32 [n, 4], x1, y1, x2, y2 in pixels; edges of pixels, so a thing of one pixel has x2 = x1 + 1.
        labels: INT64 [n], indices into LABELS.
        areas: INT64 [n], the number of pixels that are seen.
    """

    jpeg: bytes
    image: Image
    boxes: Floats
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]


def render(seed: int) -> Picture:
    """Makes a picture; the same one for the same seed (and the same versions of NumPy and OpenCV)."""
    rng = np.random.default_rng(seed)
    height, width = _canvas_size(rng)
    image = background(rng, height, width)
    owner, labels = _place_things(rng, image)
    image = _photograph(rng, image)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 97))])[1]
    boxes, areas = _extents(owner, len(labels))
    decoded: Image = cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(np.uint8, copy=False)
    return Picture(encoded.tobytes(), decoded, boxes, np.array(labels, np.int64), areas)


def render_many(seeds: Sequence[int], processes: int) -> Iterable[Picture]:
    """Makes pictures in the order of their seeds, several at a time."""
    # Not forked: a fork copies the locks of whatever threads the caller has, and some of them may be held.
    with get_context("spawn").Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(render, seeds, chunksize=16)


def write_coco(out: Path, seeds: Sequence[int], processes: int) -> None:
    """Writes a folder in COCO's format: `000000.jpg` and so on, named by the seeds, and `annotations.json`."""
    out.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for seed, picture in zip(seeds, render_many(seeds, processes), strict=True):
        name = f"{seed:06d}.jpg"
        (out / name).write_bytes(picture.jpeg)
        height, width = picture.image.shape[:2]
        images.append({"id": seed, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label, area in zip(picture.boxes.tolist(), picture.labels, picture.areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": seed,
                    "category_id": int(label) + 1,  # COCO counts from 1
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(area),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(LABELS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def draw_boxes(image: Image, boxes: Floats, labels: Iterable[int], captions: Iterable[str] | None = None) -> Image:
    """A copy of an image UINT8 [h, w, 3] with boxes [n, 4] and their captions (the class names if None) in it."""
    labels = list(labels)
    canvas = image.copy()
    hues = np.linspace(0, 180, len(LABELS), endpoint=False).astype(np.uint8)
    palette = cv2.cvtColor(
        np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 255)], 1)[None], cv2.COLOR_HSV2BGR
    )
    for (x1, y1, x2, y2), label, text in zip(
        np.round(boxes).astype(int).tolist(), labels, captions or [LABELS[label] for label in labels], strict=True
    ):
        colour = palette[0, label].tolist()
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, 1)
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        bottom = max(y1, text_height + 3)
        cv2.rectangle(canvas, (x1, bottom - text_height - 3), (x1 + text_width + 2, bottom), colour, -1)
        cv2.putText(canvas, text, (x1 + 1, bottom - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def _canvas_size(rng: np.random.Generator) -> tuple[int, int]:
    longer = int(rng.integers(320, 801))
    # Mostly between a square and 16:9, some panoramas and scrolls.
    ratio = rng.uniform(1, 1.8) if rng.random() < 0.8 else rng.uniform(1.8, 3)
    shorter = int(longer / ratio)
    return (shorter, longer) if rng.random() < 0.65 else (longer, shorter)


def _place_things(rng: np.random.Generator, image: Image) -> tuple[NDArray[np.int16], list[int]]:
    """Lays things on an image, one over the other.

    Returns:
        The index of the thing that is seen at every pixel, INT16 [h, w], -1 where there is none; and their classes.
    """
    owner: NDArray[np.int16] = np.full(image.shape[:2], -1, np.int16)
    labels: list[int] = []
    whole: list[int] = []  # how many pixels each thing has where nothing hides it
    longer = max(image.shape[:2])
    crowd = rng.uniform(0.4, 1.0)
    least_seen = LEAST_SEEN if rng.random() < 0.5 else 0.97  # a heap, or side by side
    # A shuffled deck rather than dice: all classes come equally often even in few pictures.
    deck = np.concatenate([rng.permutation(len(LABELS)) for _ in range(-(-MOST_THINGS // len(LABELS)))])
    for label in deck[: rng.integers(1, MOST_THINGS + 1)].tolist():
        size = longer * SMALLEST * (LARGEST / SMALLEST) ** (rng.random() ** 1.3 * crowd)
        for _ in range(_TRIES):
            place = rng.integers(0, image.shape[:2])
            behind = tuple(float(channel) for channel in image[place[0], place[1]])
            sprite = draw(rng, label, size, (behind[0], behind[1], behind[2]))
            solid = sprite.coverage >= 0.5
            top, left = (place - np.array(solid.shape) // 2).tolist()
            if _fits(owner, whole, solid, top, left, least_seen):
                if rng.random() < 0.5:
                    _cast_shadow(rng, image, sprite.coverage, top, left)
                _lay(image, sprite, top, left)
                part, inside = _window(owner, solid, top, left)
                part[inside] = len(labels)
                labels.append(label)
                whole.append(int(solid.sum()))
                break
            size = max(size * 0.8, longer * SMALLEST)
    return owner, labels


def _window(canvas: NDArray[Any], patch: NDArray[Any], top: int, left: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The parts of a canvas and of a patch laid at (top, left), which may lie partly outside, that meet."""
    height, width = canvas.shape[:2]
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = max(min(top + patch.shape[0], height), y1), max(min(left + patch.shape[1], width), x1)
    return canvas[y1:y2, x1:x2], patch[y1 - top : y2 - top, x1 - left : x2 - left]


def _fits(
    owner: NDArray[np.int16], whole: Sequence[int], solid: NDArray[np.bool_], top: int, left: int, least_seen: float
) -> bool:
    """Whether enough of a new thing would lie in the picture, and enough of all earlier ones would still be seen."""
    part, inside = _window(owner, solid, top, left)
    if inside.sum() < least_seen * solid.sum():
        return False
    hidden = np.bincount(part[inside] + 1, minlength=len(whole) + 1)[1:]
    return all(
        not hidden[index] or np.count_nonzero(owner == index) - hidden[index] >= least_seen * pixels
        for index, pixels in enumerate(whole)
    )


def _lay(image: Image, sprite: Sprite, top: int, left: int) -> None:
    part, coverage = _window(image, sprite.coverage, top, left)
    _, colour = _window(image, sprite.colour, top, left)
    part[:] = np.round(part * (1 - coverage[..., None]) + colour)


def _cast_shadow(rng: np.random.Generator, image: Image, coverage: Floats, top: int, left: int) -> None:
    """Darkens what is behind a thing: its blurred outline, moved a little down and to a side."""
    size = max(coverage.shape)
    blur, margin = max(1, round(size * 0.06)), max(3, round(size * 0.15))
    shadow = cv2.blur(np.pad(coverage, margin), (2 * blur + 1, 2 * blur + 1))
    y, x = (rng.uniform([0.02, -0.08], [0.1, 0.08]) * size).astype(int).tolist()
    part, shade = _window(image, shadow, top - margin + y, left - margin + x)
    part[:] = part * (1 - np.float32(rng.uniform(0.2, 0.6)) * shade[..., None])


def _photograph(rng: np.random.Generator, image: Image) -> Image:
    """What a camera adds: blur, exposure, a cast of colour, darker corners, noise."""
    height, width = image.shape[:2]
    photo: Any = image
    if rng.random() < 0.4:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.3, 0.0028 * max(height, width)))
    levels = np.arange(256)[:, None] * rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3)
    photo = cv2.LUT(photo, np.clip(levels, 0, 255).astype(np.uint8)[None])
    if rng.random() < 0.3:
        y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
        light = 1 - np.float32(rng.uniform(0.1, 0.3)) * (y[:, None] ** 2 + x[None, :] ** 2)
        photo = cv2.multiply(photo, cv2.merge([light] * 3), dtype=cv2.CV_8U)
    if rng.random() < 0.5:
        grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1, 14))
        photo = cv2.add(photo, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    finished: Image = photo
    return finished


def _extents(owner: NDArray[np.int16], count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Boxes FP32 [count, 4] around the pixels of each thing, and how many those are, INT64 [count]."""
    boxes = np.zeros((count, 4), np.float32)
    areas = np.zeros(count, np.int64)
    for index in range(count):
        seen = owner == index
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        areas[index] = np.count_nonzero(seen)
    return boxes, areas


def main() -> None:
    """Writes a folder of pictures in COCO's format."""
    parser = argparse.ArgumentParser(prog="python -m training.shapes", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--count", type=int, default=200, help="how many pictures (default: %(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="held-out", help="(default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="how many pictures of the split to leave out before them")
    parser.add_argument("--processes", type=int, default=2, help="how many work at it (default: %(default)s)")
    options = parser.parse_args()
    first = SPLITS[options.split] + options.skip
    write_coco(options.out, range(first, first + options.count), options.processes)


if __name__ == "__main__":
    main()
