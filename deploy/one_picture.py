"""Writes to stdout what perf_analyzer sends as `--input-data`: one grey picture for a detector.

By itself it sends every input of a model, and a detector takes one of two: `images`, or `images_at`, which says where
they lie in shared memory. For the image of Triton's clients: the standard library and no more.
"""

import base64
import json
import math
import sys
import urllib.request

GREY = b"\x72"


def main(url: str) -> None:
    """Ask for the size of a picture, and write one.

    Args:
        url: Of the detector, as in http://localhost:8000/v2/models/yolox_detector.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        inputs = {tensor["name"]: tensor["shape"] for tensor in json.load(answer)["inputs"]}
    picture = GREY * math.prod(inputs["images"][1:])
    json.dump({"data": [{"images": {"b64": base64.b64encode(picture).decode()}}]}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
