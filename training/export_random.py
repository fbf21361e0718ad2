"""A YOLOX of any size with random weights, as ONNX, for benchmarks: as fast as a trained one, and needs no download.

    python -m training.export_random --model m --size 640 --out yolox_m.onnx

The activations are as those of a trained network, so that FP16 neither overflows nor sinks to zero: batch norm has its
statistics from a few pictures, and the outputs are brought to the range that a trained head has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.export import OPSETS, export_onnx
from training.pool import letterbox
from training.shapes import render
from training.yolox import SIZES, YOLOX

# What the raw outputs of a trained head are like, mean and standard deviation; with these about one row in a hundred
# scores above 0.25, as in a busy street.
_BOX = ((0.5, 0.5), (0.5, 0.5), (1.0, 0.5), (1.0, 0.5))
_OBJECTNESS, _CLASSES = (-4.5, 2.0), (-4.5, 2.0)


def random_yolox(size: str, num_classes: int, seed: int) -> YOLOX:
    """A network with random weights and plausible outputs; the same one for the same seed.

    Args:
        size: A key of SIZES.
        num_classes: 80 for COCO.
        seed: Of the weights, and of the pictures that its statistics come from.
    """
    torch.manual_seed(seed)
    model = YOLOX(SIZES[size], num_classes)
    images = _varied_images(seed)
    with torch.no_grad():
        _settle_norms(model, images)
        _settle_outputs(model, images)
    return model


def _varied_images(seed: int) -> Tensor:
    """FP32 [16, 3, 320, 320]: drawn pictures, and noise of all strengths, which looks like none of them."""
    rng = np.random.default_rng(seed)
    pictures = [letterbox(render(seed + index).image, 320)[0] for index in range(10)]
    noise = [rng.integers(low, 256 - low, (320, 320, 3), np.uint8) for low in range(0, 120, 20)]
    return torch.from_numpy(np.stack([*pictures, *noise])).permute(0, 3, 1, 2).float()


def _settle_norms(model: YOLOX, images: Tensor) -> None:
    """Gives every batch norm the statistics of some images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # this batch is all there is
    model.train()(images)
    model.eval()


def _settle_outputs(model: YOLOX, images: Tensor) -> None:
    """Scales and shifts the last convolutions, so that their outputs are distributed like those of a trained head."""
    wanted = {}
    for head in model.heads:
        wanted.update({head.box: _BOX, head.objectness: [_OBJECTNESS], head.classes: [_CLASSES] * model.num_classes})
    outputs: dict[nn.Conv2d, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda layer, _, output: outputs.update({layer: output})) for layer in wanted]
    model(images)
    for hook in hooks:
        hook.remove()
    for layer, distribution in wanted.items():
        mean, deviation = torch.tensor(distribution).unbind(-1)
        factor = deviation / outputs[layer].std(dim=(0, 2, 3))
        layer.weight *= factor[:, None, None, None]
        layer.bias.copy_(mean + (layer.bias - outputs[layer].mean(dim=(0, 2, 3))) * factor)


def main() -> None:
    """Writes a YOLOX with random weights as ONNX."""
    parser = argparse.ArgumentParser(prog="python -m training.export_random", description=main.__doc__)
    parser.add_argument("--model", choices=SIZES, default="m", help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=640, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=80, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=11, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    model = random_yolox(options.model, options.classes, options.seed)
    export_onnx(model, options.out, options.size, options.size, options.opset)


if __name__ == "__main__":
    main()
