"""Results as a COCO data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pinstream_client import COCO, Detections
from pinstream_client.labels import COCO_CATEGORY_IDS


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
        self._category_ids = list(COCO_CATEGORY_IDS if names == COCO else range(1, len(names) + 1))
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
        while len(self._category_ids) <= detections.class_ids.max(initial=-1):
            self._category_ids.append((self._category_ids or [0])[-1] + 1)  # a class without a label
        for record in detections.to_coco(image["id"], self._category_ids):
            _, _, width, height = record["bbox"]
            more = {"id": len(self._annotations) + 1, "area": round(width * height, 3), "iscrowd": 0}
            self._annotations.append({**record, **more})

    def to_dict(self) -> dict[str, Any]:
        """The whole data set."""
        named = zip(self._category_ids, self._names, strict=False)
        categories = [{"id": number, "name": name} for number, name in named]
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
