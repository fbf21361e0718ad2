"""What every suite is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.target import Source
from pinstream_cli.console import Console


@dataclass(frozen=True)
class Setup:
    """The command line of a suite, read.

    Attributes:
        source: What to measure.
        plan: How to measure.
        console: For progress and notices.
        batches: Items of a request.
        concurrencies: Requests under way at the same time.
        transports: Names out of served.TRANSPORTS.
        shapes: Item shapes of inputs with dynamic dimensions.
        images: Encoded images for the ensemble.
        also: The same model for other image sizes.
        peers: What to compare with; empty for what every model can be compared with.
        poisson: Whether requests are sent at random times, too.
        keep: Where perf_analyzer's own CSV files are kept; None for nowhere.
        closing: What is to end when the result is kept: the server, of which that may take half a minute.
    """

    source: Source
    plan: Plan
    console: Console
    batches: tuple[int, ...]
    concurrencies: tuple[int, ...] = ()
    transports: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()
    peers: tuple[str, ...] = ()
    poisson: bool = True
    keep: Path | None = None
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def notice(self) -> Callable[[str], None]:
        """Prints a line."""
        return lambda text: self.console.print(text)
