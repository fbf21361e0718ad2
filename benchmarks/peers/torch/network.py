"""YOLOX in FP16 and channels_last, compiled, with the decode and the choice of candidates behind it.

    python -m benchmarks.peers.torch.network --batch-size 1 --batch-size 8

compiles it for some batch sizes side by side, so that a server that starts later finds the kernels in PyTorch's cache.
"""

import argparse
import time
import types
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from training.export import for_inference
from training.export_random import random_yolox
from training.yolox import SIZES, YOLOX, Head, cells, decode


def half_network(size: str, classes: int, seed: int | None) -> nn.Module:
    """The network that `training.export_random` exports, all of it in FP16; without a seed its weights are any."""
    network = YOLOX(SIZES[size], classes) if seed is None else random_yolox(size, classes, seed)
    network = for_inference(network).half()
    for head in network.heads:
        head.forward = types.MethodType(_forward_half, head)
    return network


def _forward_half(head: Head, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The head without its way back to FP32, which is there for training."""
    x = head.stem(x)
    class_features, box_features = head.class_branch(x), head.box_branch(x)
    return head.box(box_features), head.objectness(box_features), head.classes(class_features)


class _Candidates(nn.Module):
    """UINT8 [batch, H, W, 3] to the best K candidates, FP32 [batch, K, 6], best first."""

    def __init__(self, network: nn.Module, image: tuple[int, int], count: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("grid", cells(*image))
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        raw = self.network(images.permute(0, 3, 1, 2).half())
        scores, labels = raw[..., 5:].float().max(dim=2)
        best, picked = (scores * raw[..., 4].float()).topk(self.count, dim=1)
        rows = raw[..., :4].gather(1, picked[..., None].expand(-1, -1, 4)).float()
        boxes = decode(rows, self.grid[picked])
        return torch.cat([boxes, best[..., None], labels.gather(1, picked)[..., None].float()], dim=2)


class Detector:
    """The compiled network on the GPU.

    Args:
        size: YOLOX's size, such as m.
        classes: How many.
        seed: Of the weights; None for any weights at once.
        image: Height and width.
        candidates: K.
    """

    def __init__(self, size: str, classes: int, seed: int | None, image: tuple[int, int], candidates: int) -> None:
        torch.backends.cudnn.benchmark = True
        network = half_network(size, classes, seed).cuda().to(memory_format=torch.channels_last)
        # One compilation a batch size, each with a CUDA graph.
        torch._dynamo.config.cache_size_limit = 64
        self._model = torch.compile(
            _Candidates(network, image, candidates).cuda(), mode="reduce-overhead", dynamic=False
        )

    def __call__(self, images: Tensor) -> Tensor:
        """UINT8 [batch, H, W, 3] on the GPU to FP32 [batch, K, 6] on the GPU, which the next call overwrites."""
        with torch.inference_mode():
            return self._model(images)


def compile_for(size: str, image: int, batch: int) -> str:
    """Compile for one batch size; how long it took, and how fast it then is without a server."""
    detector = Detector(size, 80, None, (image, image), 300)
    images: Any = torch.randint(0, 256, (batch, image, image, 3), dtype=torch.uint8).cuda()
    began = time.monotonic()
    for _ in range(3):
        detector(images)
    torch.cuda.synchronize()
    return f"batch {batch}: ready in {time.monotonic() - began:.1f} s"


def main() -> None:
    """Compiles for some batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="m")
    parser.add_argument("--image", type=int, default=640)
    parser.add_argument("--batch-size", type=int, action="append")
    options = parser.parse_args()
    sizes = options.batch_size or [1, 4, 8, 16, 32]
    with ProcessPoolExecutor(len(sizes), get_context("spawn")) as pool:
        for done in pool.map(partial(compile_for, options.size, options.image), sizes):
            print(done, flush=True)


if __name__ == "__main__":
    main()
