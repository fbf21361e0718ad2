"""The YOLOX network: Focus stem, CSPDarknet, PAFPN and decoupled head.

From "YOLOX: Exceeding YOLO Series in 2021" (arXiv 2107.08430); the sizes nano to x are those of its tables 3 and 4.
Every spatial convolution is 3x3 and every one has batch norm (eps 1e-3, momentum 0.03) and SiLU behind it. Channels are
given for width 1 and scaled; in nano the 3x3 ones are depthwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Size:
    """What tells the YOLOX models from one another: depth and width multiples, and whether 3x3s are depthwise."""

    depth: float
    width: float
    depthwise: bool = False


SIZES = {
    "nano": Size(0.33, 0.25, depthwise=True),
    "tiny": Size(0.33, 0.375),
    "s": Size(0.33, 0.50),
    "m": Size(0.67, 0.75),
    "l": Size(1.0, 1.0),
    "x": Size(1.33, 1.25),
}


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        """FP32 [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return functional.silu(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Moves the batch norm into the convolution, for inference."""
        self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


def conv3x3(inputs: int, outputs: int, stride: int, depthwise: bool) -> nn.Module:
    """A 3x3 convolution, or a depthwise 3x3 and a pointwise one in its place."""
    if not depthwise:
        return Conv(inputs, outputs, 3, stride)
    return nn.Sequential(Conv(inputs, inputs, 3, stride, groups=inputs), Conv(inputs, outputs))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution, with or without a shortcut around both."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(Conv(channels, channels), conv3x3(channels, channels, 1, depthwise))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class CSPLayer(nn.Module):
    """Half of the channels go through bottlenecks, the other half past them (CSPNet, arXiv 1911.11929)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.through, self.past = Conv(inputs, half), Conv(inputs, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut, depthwise) for _ in range(blocks)))
        self.merge = Conv(2 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h, w]."""
        return self.merge(torch.cat([self.blocks(self.through(x)), self.past(x)], dim=1))


class Focus(nn.Module):
    """Every 2x2 pixels become one of 12 channels, then a 3x3 convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, outputs, h / 2, w / 2]."""
        # The paper's order: top left, bottom left, top right, bottom right.
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, dim=1))


class SpatialPyramid(nn.Module):
    """Max pooling over 5, 9 and 13 pixels, side by side (SPP)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = Conv(inputs, inputs // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in (5, 9, 13))
        self.merge = Conv(inputs // 2 * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h, w]."""
        x = self.reduce(x)
        return self.merge(torch.cat([x, *(pool(x) for pool in self.pools)], dim=1))


class Backbone(nn.Module):
    """CSPDarknet: features of strides 8, 16 and 32."""

    def __init__(self, base: int, depth: int, depthwise: bool) -> None:
        super().__init__()

        def stage(inputs: int, blocks: int) -> list[nn.Module]:
            down = conv3x3(inputs, 2 * inputs, 2, depthwise)
            return [down, CSPLayer(2 * inputs, 2 * inputs, blocks, True, depthwise)]

        self.to_8 = nn.Sequential(Focus(base), *stage(base, depth), *stage(2 * base, 3 * depth))
        self.to_16 = nn.Sequential(*stage(4 * base, 3 * depth))
        down = conv3x3(8 * base, 16 * base, 2, depthwise)
        last = CSPLayer(16 * base, 16 * base, depth, False, depthwise)
        self.to_32 = nn.Sequential(down, SpatialPyramid(16 * base, 16 * base), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, 3, h, w] to features of 4, 8 and 16 times the base channels."""
        at_8 = self.to_8(x)
        at_16 = self.to_16(at_8)
        return at_8, at_16, self.to_32(at_16)


class Neck(nn.Module):
    """PAFPN: features flow from coarse to fine, and back again."""

    def __init__(self, base: int, depth: int, depthwise: bool) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> CSPLayer:
            return CSPLayer(inputs, outputs, depth, False, depthwise)

        self.lateral_32, self.lateral_16 = Conv(16 * base, 8 * base), Conv(8 * base, 4 * base)
        self.up_16, self.up_8 = layer(16 * base, 8 * base), layer(8 * base, 4 * base)
        self.from_8 = conv3x3(4 * base, 4 * base, 2, depthwise)
        self.from_16 = conv3x3(8 * base, 8 * base, 2, depthwise)
        self.down_16, self.down_32 = layer(8 * base, 8 * base), layer(16 * base, 16 * base)

    def forward(self, at_8: Tensor, at_16: Tensor, at_32: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keeps the three shapes."""
        lateral_32 = self.lateral_32(at_32)
        at_16 = self.up_16(torch.cat([functional.interpolate(lateral_32, scale_factor=2.0), at_16], dim=1))
        lateral_16 = self.lateral_16(at_16)
        at_8 = self.up_8(torch.cat([functional.interpolate(lateral_16, scale_factor=2.0), at_8], dim=1))
        at_16 = self.down_16(torch.cat([self.from_8(at_8), lateral_16], dim=1))
        return at_8, at_16, self.down_32(torch.cat([self.from_16(at_16), lateral_32], dim=1))


class Head(nn.Module):
    """The decoupled head of one stride: classes on one branch, box and objectness on the other (paper, figure 2)."""

    def __init__(self, inputs: int, hidden: int, num_classes: int, depthwise: bool) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(*(conv3x3(hidden, hidden, 1, depthwise) for _ in range(2)))

        self.stem = Conv(inputs, hidden)
        self.class_branch, self.box_branch = branch(), branch()
        self.classes = nn.Conv2d(hidden, num_classes, 1)
        self.box, self.objectness = nn.Conv2d(hidden, 4, 1), nn.Conv2d(hidden, 1, 1)
        for scores in (self.classes, self.objectness):
            # At first everything scores 0.01, so that the many empty cells do not swamp the first steps.
            nn.init.constant_(scores.bias, -math.log(99))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, inputs, h, w] to boxes [batch, 4, h, w], objectness and classes; scores before the sigmoid."""
        x = self.stem(x)
        class_features, box_features = self.class_branch(x), self.box_branch(x)
        # In full precision even under autocast: sizes are exponentials of what comes out here.
        with torch.autocast(x.device.type, enabled=False):
            class_features, box_features = class_features.float(), box_features.float()
            return self.box(box_features), self.objectness(box_features), self.classes(class_features)


class YOLOX(nn.Module):
    """YOLOX of any size."""

    def __init__(self, size: Size, num_classes: int) -> None:
        """A network with fresh weights."""
        super().__init__()
        self.sigmoid = False  # whether scores come out behind their sigmoid, as in an export
        base, depth = int(64 * size.width), max(round(3 * size.depth), 1)
        self.num_classes = num_classes
        self.backbone = Backbone(base, depth, size.depthwise)
        self.neck = Neck(base, depth, size.depthwise)
        hidden = int(256 * size.width)
        channels = (4 * base, 8 * base, 16 * base)
        self.heads = nn.ModuleList(Head(inputs, hidden, num_classes, size.depthwise) for inputs in channels)

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network.

        Args:
            images: FP32 [batch, 3, H, W], BGR, 0-255; H and W multiples of 32.

        Returns:
            FP32 [batch, N, 5 + classes]: x, y, w, h undecoded, then objectness and classes, before the sigmoid unless
            `self.sigmoid`; one row for each cell of strides 8, 16 and 32, row by row.
        """
        levels = []
        for head, x in zip(self.heads, self.neck(*self.backbone(images)), strict=True):
            box, objectness, classes = head(x)
            if self.sigmoid:
                objectness, classes = objectness.sigmoid(), classes.sigmoid()
            levels.append(torch.cat([box, objectness, classes], dim=1).flatten(2))
        return torch.cat(levels, dim=2).transpose(1, 2)


def cells(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The cell of every row of the output, FP32 [N, 3]: column, row and stride."""
    levels = []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        levels.append(torch.stack([columns, rows, torch.full_like(rows, stride)], dim=-1).reshape(-1, 3))
    return torch.cat(levels).float().to(device)


def decode(raw: Tensor, grid: Tensor) -> Tensor:
    """Boxes FP32 [..., N, 4] as x1, y1, x2, y2 in pixels, from raw rows [..., N, 4 or more] and their cells [N, 3]."""
    centre = (raw[..., :2] + grid[..., :2]) * grid[..., 2:]
    half = raw[..., 2:4].exp() * grid[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def count_parameters(model: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, height: int, width: int) -> int:
    """Floating-point operations for one image: two for each multiplication and addition of the convolutions."""
    total = 0

    def add(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        per_value = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        total += 2 * per_value * output.numel()

    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return total
