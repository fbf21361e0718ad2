"""JPEG files to measure the ensemble with: drawn pictures of 640 x 480 to 1280 x 720, always the same.

python -m benchmarks.pictures --out pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from training.shapes import render

SIZES = ((640, 480), (640, 640), (800, 600), (960, 540), (1024, 768), (1280, 720))
QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(options.count):
        width, height = SIZES[number % len(SIZES)]
        image = cv2.resize(render(number).image, (width, height), interpolation=cv2.INTER_CUBIC)
        file = options.out / f"{number:02d}-{width}x{height}.jpg"
        cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


if __name__ == "__main__":
    main()
