"""A network as the ONNX file that YOLOX's own export tool makes: `images` in, `output` out, undecoded."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from training.yolox import YOLOX, Conv

OPSETS = range(11, 18)


class Exported(nn.Module):
    """A network as it is exported: batch norm folded, scores behind their sigmoid."""

    def __init__(self, model: YOLOX) -> None:
        """Takes a copy of a network, on the CPU in full precision."""
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
        for module in self.model.modules():
            if isinstance(module, Conv):
                module.fold()

    def forward(self, images: Tensor) -> Tensor:
        """FP32 [1, 3, H, W], BGR 0-255, to FP32 [1, N, 5 + classes]; objectness and classes in 0..1."""
        raw = self.model(images)
        return torch.cat([raw[..., :4], raw[..., 4:].sigmoid()], dim=-1)


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
            Exported(model),
            (torch.zeros(1, 3, height, width),),
            str(path),
            input_names=["images"],
            output_names=["output"],
            opset_version=opset,
            dynamo=False,
        )
