"""How plans are to be built: what the command line asks for, and what a sidecar says of an earlier build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pinstream.engines.flavour import Flavour
from pinstream.engines.profiles import Range
from pinstream.errors import ConfigError

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class BuildSpec:
    """How plans are built.

    Attributes:
        precision: "fp32" keeps the types the graph states, be they FP32, FP16 or explicit quantization; "fp16" converts
            an FP32 graph, inputs and outputs kept.
        batch_sizes: One static plan for each; a static plan is faster than a dynamic one. Empty for 1, 2, 4, 8, 12, 16,
            24, 32.
        max_batch: One dynamic plan for 1 up to this many instead; 0 for static plans.
        shapes: Sizes of dynamic dimensions by input, without the batch dimension or, to set that too, with it. An
            input's second entry belongs to the second optimisation profile, and so on.
        fp32_nodes: Patterns of node names that stay in FP32 when the graph is converted to FP16.
        compute_capabilities: TensorRT-RTX: the GPUs to build for ("8.9", "current"); empty for all it supports.
        workspace_mb: Most scratch memory of a layer, in MiB; 0 for TensorRT's default, the whole GPU.
        version_compatible: tensorrt: the plan also runs on later versions; it can be slower.
        tf32: Let FP32 be multiplied in TF32, with 10 bits of mantissa: faster, and no longer what ONNX Runtime says.
            None for what the TensorRT at hand can do: not for tensorrt, but for TensorRT-RTX, which has no kernels
            without it for many networks.
        hardware_compatible: tensorrt: the plan runs on compute capability 8.0 and later; it can be slower.
        plugins: Libraries of plugins that the graph needs. Whoever builds has loaded them.

    Raises:
        ConfigError: A value is impossible, or two contradict each other.
    """

    precision: str = "fp32"
    batch_sizes: tuple[int, ...] = ()
    max_batch: int = 0
    shapes: tuple[tuple[str, Range], ...] = ()
    fp32_nodes: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace_mb: int = 0
    tf32: bool | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision} is none of {', '.join(PRECISIONS)}")
        if any(size < 1 for size in self.batch_sizes) or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ConfigError(
                f"batch sizes {', '.join(map(str, self.batch_sizes))}: expected different numbers, 1 at least"
            )
        if self.max_batch < 0 or self.workspace_mb < 0:
            raise ConfigError("a largest batch and a workspace cannot be negative")
        if self.batch_sizes and self.max_batch:
            raise ConfigError(
                "batch sizes (static plans) and a largest batch (one dynamic plan) exclude each other; give one of them"
            )
        for text in self.compute_capabilities:
            if not re.fullmatch(r"current|\d+\.\d", text):
                raise ConfigError(f"compute capability {text}: expected one as in 8.9, or current")

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> BuildSpec:
        """Read what a sidecar says of an earlier build.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: It is malformed.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in options.items() if name in known
        }
        shapes = (
            (str(name), Range(*(tuple(map(int, sizes[key])) for key in ("min", "opt", "max"))))
            for name, sizes in options.get("shapes", ())
        )
        values["shapes"] = tuple(shapes)
        return cls(**values)

    def fitted_to(self, flavour: Flavour, compute_capability: str) -> BuildSpec:
        """The same for the TensorRT and the GPU at hand, without what they cannot take.

        Args:
            flavour: The TensorRT that will build.
            compute_capability: Of the GPU, as in "9.0"; empty where it is not known.
        """
        # Hardware compatibility begins with Ampere.
        ampere = not compute_capability or float(compute_capability) >= 8.0
        return replace(
            self,
            compute_capabilities=(),  # those of the GPUs there were, which need not be the one there is
            version_compatible=self.version_compatible and not flavour.is_rtx,
            hardware_compatible=self.hardware_compatible and not flavour.is_rtx and ampere,
        )

    def arguments(self) -> list[str]:
        """The options of `pinstream build --plan` that ask for the same."""
        words = [] if self.precision == "fp32" else ["--precision", self.precision]
        if self.batch_sizes:
            words += ["--batch-sizes", ",".join(map(str, self.batch_sizes))]
        if self.max_batch:
            words += ["--max-batch", str(self.max_batch)]
        for name, r in self.shapes:
            words += ["--shape", ":".join([name, *("x".join(map(str, s)) for s in (r.min, r.opt, r.max))])]
        several = {
            "--fp32-node": self.fp32_nodes,
            "--compute-capability": self.compute_capabilities,
            "--plugin": self.plugins,
        }
        for option, values in several.items():
            words += [word for value in values for word in (option, value)]
        if self.workspace_mb:
            words += ["--workspace", str(self.workspace_mb)]
        flags = {
            "--tf32": self.tf32 is True,
            "--no-tf32": self.tf32 is False,
            "--version-compatible": self.version_compatible,
            "--hardware-compatible": self.hardware_compatible,
        }
        return words + [flag for flag, on in flags.items() if on]


def parse_shape(text: str) -> tuple[str, Range]:
    """Read `NAME:MIN:OPT:MAX` or `NAME:SIZES`, sizes as in 3x640x640; values of a shape tensor may be negative.

    Raises:
        ConfigError: It is neither, or the sizes do not ascend.
    """
    match = re.fullmatch(r"(.+?):({0})(?::({0}):({0}))?".format(r"-?\d+(?:x-?\d+)*"), text)
    if not match:
        raise ConfigError(f"shape {text}: expected NAME:MIN:OPT:MAX, as in images:3x320x320:3x640x640:3x1280x1280")
    low, opt, high = (tuple(map(int, (group or match[2]).split("x"))) for group in match.groups()[1:])
    ascending = len(low) == len(opt) == len(high) and all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
    if not ascending:
        raise ConfigError(f"shape {text}: MIN, OPT and MAX must have as many sizes, none smaller than before")
    return match[1], Range(low, opt, high)
