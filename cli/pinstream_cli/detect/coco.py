"""Results as a COCO data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pinstream_client import COCO, Detections

# The ids of COCO's categories, from its annotation files: 1 to 90, without these ten.
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED_IDS)


class CocoDataset:
    """Images, categories and annotations with scores, in COCO's layout.

    An image's id is the number that its file is called by, as COCO's own are (000000397133.jpg), else a number in the
    order of arrival. The 80 classes of COCO have the ids of COCO's annotation files; other labels count from 1. The
    annotations alone are what pycocotools' ``loadRes`` takes.

    Args:
        names: The model's labels.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._images: dict[str, dict[str, Any]] = {}
        self._ids: set[int] = set()
        self._highest_id = 0
        self._annotations: list[dict[str, Any]] = []

    def add(self, name: str, detections: Detections) -> None:
        """Adds an image and its objects; the same name again is the same image.

        Args:
            name: Its file, and the frame of a video.
            detections: Its objects.
        """
        image: dict[str, Any] = {"id": self._image_id(name), "file_name": name}
        if detections.image_size is not None:
            image["width"], image["height"] = detections.image_size
        self._images[name] = image
        for item in detections:
            x1, y1, x2, y2 = (float(value) for value in item.box)
            width, height = x2 - x1, y2 - y1
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image["id"],
                    "category_id": self._category_id(item.class_id),
                    "bbox": [round(value, 2) for value in (x1, y1, width, height)],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": round(item.score, 5),
                }
            )

    def to_dict(self) -> dict[str, Any]:
        """The whole data set."""
        categories = [{"id": self._category_id(index), "name": name} for index, name in enumerate(self._names)]
        return {"images": list(self._images.values()), "annotations": self._annotations, "categories": categories}

    def _image_id(self, name: str) -> int:
        if name in self._images:
            return int(self._images[name]["id"])
        stem = Path(name).stem
        number = int(stem) if stem.isdecimal() and stem.isascii() else 0
        if number == 0 or number in self._ids:
            number = self._highest_id + 1
        self._ids.add(number)
        self._highest_id = max(self._highest_id, number)
        return number

    def _category_id(self, class_id: int) -> int:
        return COCO_IDS[class_id] if self._names == COCO and class_id < len(COCO_IDS) else class_id + 1
