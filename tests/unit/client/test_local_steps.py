"""The client's letterbox and suppression, bit for bit against the service's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstream_client import letterbox as client_letterbox
from pinstream_client import nms as client_nms
from yolox_steps import nms as service_nms
from yolox_steps.letterbox import letterbox as service_letterbox
from yolox_steps.parameters import Thresholds

SIZES = [(300, 1280), (1280, 300), (416, 416), (832, 832), (97, 131), (1, 1), (1, 300), (300, 1), (49, 49), (333, 777)]
TARGETS = [(416, 416), (64, 64), (320, 608)]


def noise(height: int, width: int) -> client_letterbox.Pixels:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("with_opencv", [True, False])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_letterbox_is_the_service_s(
    size: tuple[int, int], target: tuple[int, int], with_opencv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_opencv:
        monkeypatch.setattr(client_letterbox, "_opencv", lambda: None)
    image = noise(*size)
    ours, theirs = (np.full((*target, 3), 7, np.uint8) for _ in range(2))
    assert client_letterbox.letterbox(image, ours) == service_letterbox(image, theirs)
    np.testing.assert_array_equal(ours, theirs)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.integers(1, 200))
def test_resize_is_opencv_s(height: int, width: int, rows: int, columns: int) -> None:
    image = noise(height, width)
    expected = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(client_letterbox.resize(image, columns, rows), expected)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 400),
    classes=st.integers(1, 4),
    conf=st.floats(0, 1),
    iou=st.floats(0, 1),
    max_det=st.integers(1, 50),
)
def test_suppression_is_the_service_s(
    seed: int, count: int, classes: int, conf: float, iou: float, max_det: int
) -> None:
    random = np.random.default_rng(seed)
    # Few positions and scores, so that overlaps and ties are many; some boxes have no area.
    corners = random.integers(0, 12, (count, 4)).astype(np.float32) * 8
    candidates = np.column_stack(
        [corners, random.integers(0, 8, count) / np.float32(7), random.integers(0, classes, count)]
    ).astype(np.float32)
    ours = client_nms.select(candidates, client_nms.Thresholds(conf, iou, max_det))
    theirs = service_nms.select(candidates, Thresholds(conf, iou, max_det))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype
    ratio, width, height = np.float32(0.37), 641, 479
    np.testing.assert_array_equal(
        client_nms.to_original_pixels(ours[:, :4], float(ratio), width, height),
        service_nms.to_original_pixels(theirs[:, :4], np.array([ratio, width, height], np.float32)),
    )
