"""A COCO-format annotation file: which images there are, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.errors import CommandError


@dataclass(frozen=True)
class Annotations:
    """The truth about some images.

    Attributes:
        file: Where it was read from.
        images: Path of each image, by the file's own image ids.
        categories: Names by category id, in the order of the ids, which is that of the classes of YOLOX's weights.
        objects: COCO's annotations, numbered from 1, each with `image_id`, `category_id`, `bbox` (x, y, w, h in
            pixels), `area` and `iscrowd`.
    """

    file: Path
    images: dict[int, Path]
    categories: dict[int, str]
    objects: list[dict[str, Any]]


def read_annotations(file: Path, directory: Path) -> Annotations:
    """Reads an annotation file.

    Args:
        file: JSON with `images`, `annotations` and `categories`, as in COCO's instances_val2017.json.
        directory: The folder its `file_name`s are relative to.

    Raises:
        CommandError: It cannot be read, is not in COCO's format, contradicts itself, or its images are elsewhere.
    """
    content = _load(file)
    try:
        images = {int(image["id"]): directory / str(image["file_name"]) for image in content["images"]}
        categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        objects = [_object(number, entry) for number, entry in enumerate(content["annotations"], 1)]
    except (KeyError, TypeError, ValueError) as error:
        missing = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise CommandError(
            f"{file} is not in COCO's format ({missing}); expected images (id, file_name), "
            "annotations (image_id, category_id, bbox) and categories (id, name)"
        ) from None
    _check_references(file, "image", images, (entry["image_id"] for entry in objects))
    _check_references(file, "category", categories, (entry["category_id"] for entry in objects))
    _check_images(file, directory, list(images.values()))
    return Annotations(file, images, dict(sorted(categories.items())), objects)


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--annotations {file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # no UTF-8, or no JSON
        raise CommandError(
            f"--annotations {file} is not JSON ({error}); name an annotation file in COCO's format"
        ) from None


def _object(number: int, entry: Any) -> dict[str, Any]:
    x, y, width, height = (float(value) for value in entry["bbox"])
    return {
        # Numbered anew: COCO's tools take an id of 0 for "no match".
        "id": number,
        "image_id": int(entry["image_id"]),
        "category_id": int(entry["category_id"]),
        "bbox": [x, y, width, height],
        # COCO sorts objects into small, medium and large by the pixels of their outline.
        "area": float(entry.get("area", width * height)),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def _check_references(file: Path, what: str, known: Iterable[int], named: Iterable[int]) -> None:
    if unknown := set(named) - set(known):
        raise CommandError(
            f"{file} contradicts itself: {len(unknown)} {what} ids of annotations, {min(unknown)} for one, "
            f"are not among its {what} entries"
        )


def _check_images(file: Path, directory: Path, images: list[Path]) -> None:
    if not images:
        raise CommandError(f"{file} lists no image; there is nothing to evaluate")
    if not directory.is_dir():
        raise CommandError(f"--images {directory} is not a directory; name the folder of the images of {file}")
    if not any(image.is_file() for image in images):
        raise CommandError(
            f"none of the {len(images)} images of {file} lies in --images {directory}, {images[0].name} for one; "
            "name the folder that its file names are relative to"
        )
