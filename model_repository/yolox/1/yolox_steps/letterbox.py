"""YOLOX's letterbox, exactly as the network was trained with it."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

PAD = 114


def letterbox(image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], full: tuple[int, int] | None = None) -> float:
    """Resizes an image to fit and puts it into the top-left corner, over grey.

    Channels and values stay as they are: YOLOX takes BGR from 0 to 255, without mean and deviation.

    Args:
        image: The image, UINT8 [h, w, 3].
        out: Where to write, UINT8 [H, W, 3]; may be a slice of a batch, and holds the result without another copy.
        full: Height and width of the picture that `image` is a smaller version of; None where it is the picture.

    Returns:
        The ratio, letterbox pixels per original pixel.
    """
    height, width = out.shape[:2]
    full_height, full_width = full or image.shape[:2]
    ratio = min(height / full_height, width / full_width)
    # YOLOX truncates, which leaves nothing of an image that is far longer than wide: keep a row of it.
    rows = max(int(full_height * ratio), 1)
    columns = max(int(full_width * ratio), 1)
    cv2.resize(image, (columns, rows), dst=out[:rows, :columns], interpolation=cv2.INTER_LINEAR)
    out[rows:] = PAD
    out[:rows, columns:] = PAD
    return ratio
