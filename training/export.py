"""A network as the ONNX file that YOLOX's own export tool makes: `images` in, `output` out, undecoded.

    python -m training.export --weights trained/weights.pt --out shapes_nano.onnx

makes one of the weights that training leaves behind.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path

import torch

from training.shapes import LABELS
from training.yolox import SIZES, YOLOX, Conv

OPSETS = range(11, 18)


def for_inference(model: YOLOX) -> YOLOX:
    """A copy of a network as it is exported: on the CPU, batch norm folded, scores behind their sigmoid."""
    copied: YOLOX = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    copied.sigmoid = True
    for module in copied.modules():
        if isinstance(module, Conv):
            module.fold()
    return copied


def export_onnx(model: YOLOX, path: Path, height: int, width: int, opset: int = 11) -> None:
    """Writes a network as ONNX, static shape, batch 1.

    Args:
        model: The network; it stays as it is.
        path: The file.
        height: Of the input in pixels, a multiple of 32.
        width: Likewise.
        opset: 11 to 17.
    """
    if opset not in OPSETS or height % 32 or width % 32:
        raise ValueError(f"opset 11 to 17 and sides that are multiples of 32, not {opset} and {height} x {width}")
    with warnings.catch_warnings():
        # The exporter that needs no further package is called legacy.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            for_inference(model),
            (torch.zeros(1, 3, height, width),),
            str(path),
            input_names=["images"],
            output_names=["output"],
            opset_version=opset,
            dynamo=False,
        )


def main() -> None:
    """Exports a network that was trained on the drawn pictures."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=main.__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="weights.pt, as training writes it")
    parser.add_argument("--model", choices=SIZES, default="nano", help="its size (default: %(default)s)")
    parser.add_argument("--height", type=int, default=416, help="of the input in pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=416, help="likewise (default: %(default)s)")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=11, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    model = YOLOX(SIZES[options.model], len(LABELS))
    model.load_state_dict(torch.load(options.weights, map_location="cpu"))
    export_onnx(model, options.out, options.height, options.width, options.opset)


if __name__ == "__main__":
    main()
