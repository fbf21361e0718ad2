"""Trains the built-in model: pictures are drawn while it learns, for as many minutes as are given.

    python -m training.train --device cuda --minutes 7 --out trained

The recipe is YOLOX's (arXiv 2107.08430): mosaic at first, plain pictures and an L1 loss at the end, cosine schedule
with warm-up, a moving average of the weights; the optimiser is AdamW, which needs fewer steps than SGD. The place in
the schedule is the share of the time that has gone, so training ends on time on any machine. Every minute the averaged
weights are evaluated and exported: what is in the folder can be used whenever training is cut off.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from training.evaluate import detect, evaluate
from training.export import export_onnx
from training.mosaic import mosaic, plain
from training.pool import PicturePool
from training.shapes import HELD_OUT_SEED, LABELS, TRAINING_SEED, draw_boxes
from training.simota import losses
from training.yolox import SIZES, YOLOX, cells

# Shares of the training time.
WARM_UP, PLAIN_FROM = 0.03, 0.8
MOSAIC_PROBABILITY = 0.5
WEIGHT_DECAY = 0.02
# Moving average of the weights: over this many steps at most, and fewer at first.
EMA_STEPS = 1500
LOG_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """The command line; see `parse`."""

    model: str
    device: str
    minutes: float
    size: int
    batch: int
    learning_rate: float
    pictures: int
    held_out: int
    processes: int
    report_seconds: float
    compile: bool
    seed: int
    out: Path


class Trainer:
    """A network in training, and its averaged twin."""

    def __init__(self, options: Options, pool: PicturePool, held_out: PicturePool) -> None:
        self.options, self.pool, self.held_out = options, pool, held_out
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        torch.backends.cudnn.benchmark = True
        self.model = YOLOX(SIZES[options.model], len(LABELS)).to(self.device)
        self.dtype, self.layout, self.timings = fastest_way(self.model, options.batch, options.size)
        self.model = self.model.to(memory_format=self.layout)
        self.average = copy.deepcopy(self.model).eval()
        self.forward: Any = torch.compile(self.model) if options.compile else self.model
        # Weights and statistics, all of which change in place.
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        self._pairs = [pair for pair in pairs if pair[0].is_floating_point()]
        self.grid = cells(options.size, options.size, self.device)
        self.dice = np.random.default_rng(options.seed)
        self.steps = 0
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]  # batch norm and biases
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=self.device.type == "cuda")

    def step(self, progress: float) -> dict[str, Tensor]:
        """One step, at a share of the training time; returns its losses, still on the device."""
        ending = progress >= PLAIN_FROM
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * schedule(progress)
        images, boxes, labels = self._batch(mosaics=not ending and self.dice.random() < MOSAIC_PROBABILITY)
        self.model.train()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            raw = self.forward(images.contiguous(memory_format=self.layout))
        parts = losses(raw, self.grid, boxes, labels, (self.options.size, self.options.size), with_l1=ending)
        self.optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.steps += 1
        self._follow()
        return {name: loss.detach() for name, loss in parts.items()}

    def _batch(self, mosaics: bool) -> tuple[Tensor, Tensor, Tensor]:
        number = (self.options.batch, 4) if mosaics else (self.options.batch,)
        chosen = torch.randint(self.pool.count, number, device=self.device)
        return (mosaic if mosaics else plain)(self.pool, chosen)

    def _follow(self) -> None:
        """Moves the averaged weights a little towards the trained ones."""
        share = 1 / min(EMA_STEPS, 1 + self.steps / 5)
        with torch.no_grad():
            torch._foreach_lerp_(*map(list, zip(*self._pairs, strict=True)), share)

    def save(self) -> None:
        """Writes the averaged weights, as they are and as ONNX."""
        out = self.options.out
        # Beside the old file first: a run that is cut off here leaves that one.
        torch.save(self.average.state_dict(), out / "weights.pt.part")
        export_onnx(self.average, out / "model.onnx.part", self.options.size, self.options.size)
        os.replace(out / "weights.pt.part", out / "weights.pt")
        os.replace(out / "model.onnx.part", out / "model.onnx")

    def measure(self, count: int) -> dict[str, Any]:
        """AP of the averaged weights on held-out pictures."""
        self.held_out.wait(count)
        table = evaluate(self.average, self.held_out, min(count, self.held_out.capacity), len(LABELS))
        per_class = {
            name: {"AP": _rounded(row.mean()), "AP50": _rounded(row[0])}
            for name, row in zip(LABELS, table, strict=True)
        }
        mean = np.nanmean(table, axis=0)
        return {"AP": _rounded(mean.mean()), "AP50": _rounded(mean[0]), "AP75": _rounded(mean[5]), "classes": per_class}

    def draw_samples(self, count: int) -> None:
        """Writes held-out pictures with what was found in them."""
        images = self.held_out.images[:count].cpu().numpy()
        extents = self.held_out.extents[:count].cpu().numpy().astype(int)
        found = detect(self.average, self.held_out, count)
        for index, (image, (width, height), result) in enumerate(zip(images, extents, found, strict=True)):
            sure = result.scores > 0.3
            captions = [
                f"{LABELS[label]} {score:.2f}"
                for label, score in zip(result.labels[sure], result.scores[sure], strict=True)
            ]
            drawn = draw_boxes(image[:height, :width], result.boxes[sure], result.labels[sure], captions)
            cv2.imwrite(str(self.options.out / f"sample_{index}.png"), drawn)


def fastest_way(model: nn.Module, batch: int, size: int) -> tuple[Any, Any, dict[str, float]]:
    """The number format and memory layout that a network trains fastest with on this GPU.

    Which one wins for depthwise convolutions depends on the GPU and on cuDNN.

    Returns:
        The format, the layout, and the milliseconds that forward and backward took with each.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return torch.float32, torch.channels_last, {}
    timings: dict[str, float] = {}
    ways = [
        (dtype, layout)
        for dtype in (torch.bfloat16, torch.float32)
        for layout in (torch.channels_last, torch.contiguous_format)
    ]
    for dtype, layout in ways:
        trial = copy.deepcopy(model).to(memory_format=layout)
        images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=layout)
        for repeat in range(8):
            if repeat == 3:  # warm by now
                torch.cuda.synchronize()
                started = time.monotonic()
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                output = trial(images)
            output.sum().backward()
        torch.cuda.synchronize()
        timings[f"{dtype}, {layout}"] = round((time.monotonic() - started) / 5 * 1000, 1)
    dtype, layout = ways[int(np.argmin(list(timings.values())))]
    return dtype, layout, timings


def schedule(progress: float) -> float:
    """The learning rate over its highest value: a linear warm-up, then half a cosine down to 2 %."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * min((progress - WARM_UP) / (1 - WARM_UP), 1.0))) / 2


def train(options: Options) -> dict[str, Any]:
    """Trains, and writes model.onnx, weights.pt, curve.jsonl, metrics.json and samples; returns the metrics."""
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    held_out = PicturePool(HELD_OUT_SEED, options.held_out, options.size, max(1, options.processes // 4))
    pool = PicturePool(TRAINING_SEED + options.seed, options.pictures, options.size, options.processes)
    for each in (held_out, pool):
        each.move_to(torch.device(options.device))
    trainer = Trainer(options, pool, held_out)
    pool.wait(min(4000, options.pictures))
    ready = time.monotonic()
    end = started + options.minutes * 60
    some = min(250, options.held_out)
    with (options.out / "curve.jsonl").open("w", encoding="utf-8") as curve:

        def log(**entry: Any) -> None:
            line = json.dumps({"seconds": round(time.monotonic() - started, 1), "step": trainer.steps, **entry})
            print(line, file=curve, flush=True)
            print(line, flush=True)

        log(pictures=pool.count, milliseconds=trainer.timings)
        next_log, next_report, logged = ready + LOG_SECONDS, ready + options.report_seconds, 0
        while (now := time.monotonic()) < end:
            progress = (now - ready) / (end - ready)
            parts = trainer.step(progress)
            if now >= next_log:
                values = {name: round(float(loss), 4) for name, loss in parts.items()}
                rate = (trainer.steps - logged) * options.batch / (time.monotonic() - next_log + LOG_SECONDS)
                log(progress=round(progress, 3), pictures=pool.count, images_per_second=round(rate), **values)
                next_log, logged = time.monotonic() + LOG_SECONDS, trainer.steps
            if now >= next_report:
                trainer.save()
                metrics = trainer.measure(some)
                log(AP=metrics["AP"], AP50=metrics["AP50"], held_out=some)
                next_report = time.monotonic() + options.report_seconds
                next_log, logged = time.monotonic() + LOG_SECONDS, trainer.steps
        trainer.save()
        metrics = trainer.measure(options.held_out)
        log(AP=metrics["AP"], AP50=metrics["AP50"], held_out=options.held_out)
    trainer.draw_samples(3)
    metrics = {
        "held_out": options.held_out,
        **metrics,
        "steps": trainer.steps,
        "images": trainer.steps * options.batch,
        "pictures": pool.count,
        "seconds": round(time.monotonic() - started),
        "options": {name: str(value) if name == "out" else value for name, value in vars(options).items()},
        "torch": torch.__version__,
    }
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _rounded(value: float) -> float:
    return round(float(value), 4)


def parse() -> Options:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the built-in model.")
    parser.add_argument("--model", choices=SIZES, default="nano", help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="for all but the last evaluation (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=416, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=60000, help="to learn from (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=1000, help="to evaluate on (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw (default: one for each core)")
    parser.add_argument("--report-seconds", type=float, default=60.0, help="between exports (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    train(parse())
