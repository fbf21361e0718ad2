"""The typed result of one image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra
from .labels import COCO, COCO_CATEGORY_IDS
from .timing import ModelTiming

if TYPE_CHECKING:
    from .images import ImageLike


@dataclass(frozen=True, eq=False)
class Detection:
    """One object.

    Attributes:
        box: float32 [4], (x1, y1, x2, y2) in pixels of the original image.
        score: 0 to 1.
        class_id: Index into the model's labels.
        name: The class's label.
    """

    box: NDArray[np.float32]
    score: float
    class_id: int
    name: str

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of it: ``{"class", "class_id", "score", "box"}``."""
        return {
            "class": self.name,
            "class_id": self.class_id,
            "score": round(self.score, 5),
            "box": [round(float(value), 2) for value in self.box],
        }


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image, best score first as the server sends them. The arrays are read-only.

    Attributes:
        boxes: float32 [n, 4], (x1, y1, x2, y2) in pixels of the original image.
        scores: float32 [n], 0 to 1.
        class_ids: int32 [n].
        names: The model's labels: ``names[class_id]`` is a class's name.
        image_size: (width, height) in pixels where the client knows it (arrays), else None.
        round_trip_ms: From sending the request to having its answer, else None.
        server_timings: The server's own time split, ensemble first, where the client was asked to look
            (``Detector(..., server_timings=True)``), else empty.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    round_trip_ms: float | None = None
    server_timings: tuple[ModelTiming, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.scores)
        for field, dtype, shape in (
            ("boxes", np.float32, (count, 4)),
            ("scores", np.float32, (count,)),
            ("class_ids", np.int32, (count,)),
        ):
            array = np.array(getattr(self, field), dtype=dtype)
            if array.size == 0:
                array = array.reshape(shape)
            if array.shape != shape:
                raise ValueError(f"{field} has shape {array.shape}: expected {shape} for {count} scores")
            array.flags.writeable = False
            object.__setattr__(self, field, array)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Detections: ...
    def __getitem__(self, index: int | np.integer[Any] | slice | NDArray[Any] | list[int]) -> Detection | Detections:
        """One `Detection` for an integer; `Detections` for a slice, a mask or an index array."""
        if isinstance(index, (int, np.integer)):
            class_id = int(self.class_ids[index])
            return Detection(self.boxes[index], float(self.scores[index]), class_id, self.name_of(class_id))
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], class_ids=self.class_ids[index])

    def __repr__(self) -> str:
        shown = ", ".join(f"{item.name} {item.score:.2f}" for item in self[:5])
        return f"<Detections {len(self)}: {shown}{', ...' if len(self) > 5 else ''}>"

    def name_of(self, class_id: int) -> str:
        """A class's label; the number itself where the labels do not reach."""
        return self.names[class_id] if 0 <= class_id < len(self.names) else str(class_id)

    def filter(self, conf: float | None = None, classes: Iterable[str | int] | None = None) -> Detections:
        """Keeps what passes every condition given.

        Args:
            conf: The lowest score to keep.
            classes: Names or class ids to keep.

        Raises:
            ValueError: A name that the model's labels do not have.
        """
        keep = np.ones(len(self), bool)
        if conf is not None:
            keep &= self.scores >= conf
        if classes is not None:
            wanted = [classes] if isinstance(classes, str) else classes
            keep &= np.isin(self.class_ids, [self._class_id(item) for item in wanted])
        return self[keep]

    def with_timings(self, server_timings: tuple[ModelTiming, ...]) -> Detections:
        """The same with the server's time split."""
        return replace(self, server_timings=server_timings)

    def draw(self, image: ImageLike) -> NDArray[np.uint8]:
        """Draws boxes and labels onto a copy of the picture. Needs OpenCV: ``pip install "pinstream[draw]"``.

        Args:
            image: The picture that was sent: a path, encoded bytes, or a uint8 array (BGR or grey).

        Returns:
            uint8 [height, width, 3] in BGR order.

        Raises:
            MissingExtra: OpenCV is not installed.
            InvalidImage: The picture cannot be read.
        """
        from .drawing import draw

        return draw(image, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: ``{"detections": [...]}``, with ``image_size`` and ``round_trip_ms`` where known."""
        result: dict[str, Any] = {"detections": [item.to_dict() for item in self]}
        if self.image_size is not None:
            result["image_size"] = list(self.image_size)
        if self.round_trip_ms is not None:
            result["round_trip_ms"] = round(self.round_trip_ms, 3)
        if self.server_timings:
            result["server_timing"] = [timing.to_dict() for timing in self.server_timings]
        return result

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO result records, as its evaluation reads them.

        Args:
            image_id: The image's id in the annotations.
            category_ids: ``category_ids[class_id]`` is a class's id in the annotations. None takes COCO's own ids for a
                model with COCO's labels, else the class ids as they are.

        Returns:
            ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` for each object.

        Raises:
            ValueError: A class that ``category_ids`` do not reach.
        """
        if category_ids is None and self.names == COCO:
            category_ids = COCO_CATEGORY_IDS
        highest = self.class_ids.max(initial=-1)
        if category_ids is not None and highest >= len(category_ids):
            raise ValueError(f"class {highest} has no category: there are {len(category_ids)} category_ids, give more")
        return [
            {
                "image_id": image_id,
                "category_id": int(class_id) if category_ids is None else category_ids[class_id],
                "bbox": [round(float(value), 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(score), 5),
            }
            for (x1, y1, x2, y2), score, class_id in zip(self.boxes, self.scores, self.class_ids, strict=True)
        ]

    def to_supervision(self) -> Any:
        """The same as a ``supervision.Detections``, with the names under ``data["class_name"]``.

        Raises:
            MissingExtra: The supervision package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtra(f"this needs the supervision package ({error}): pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.astype(int),
            data={"class_name": np.array([self.name_of(int(class_id)) for class_id in self.class_ids], dtype=str)},
        )

    def _class_id(self, wanted: str | int) -> int:
        if not isinstance(wanted, str):
            return int(wanted)
        if wanted not in self.names:
            raise ValueError(
                f"no class '{wanted}' among the model's {len(self.names)} labels: {_shortened(self.names)}"
            )
        return self.names.index(wanted)


def _shortened(names: tuple[str, ...], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
