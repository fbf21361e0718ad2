"""What all pictures have in common: colours, type, and how they are saved."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.errors import CommandError


@dataclass(frozen=True)
class Theme:
    """Colours of a page.

    Attributes:
        name: light or dark.
        page: Background.
        ink: Text.
        muted: Text that is less important.
        line: Grid and frames.
        ours: What the picture is about.
        others: What it is compared with, in the order of appearance.
        stages: From where a request comes in to where it leaves.
    """

    name: str
    page: str
    ink: str
    muted: str
    line: str
    ours: str
    others: tuple[str, ...]
    stages: tuple[str, ...]


LIGHT = Theme(
    "light",
    page="#ffffff",
    ink="#1f2328",
    muted="#6e7781",
    line="#e3e7eb",
    ours="#0b6bcb",
    others=("#b35900", "#7a4fbf", "#1f7a4d", "#8c959f", "#a8324a", "#4d6b82"),
    stages=("#d4dae0", "#9fb0bf", "#e3bd7f", "#7fb2e5", "#0b6bcb", "#b39ddb", "#c3b9d9"),
)
DARK = Theme(
    "dark",
    page="#0f1317",
    ink="#e6e9ec",
    muted="#909aa4",
    line="#272d34",
    ours="#62aef7",
    others=("#e39a4c", "#b79bea", "#5fbf8f", "#79828c", "#e27a8d", "#8fb0c9"),
    stages=("#333b44", "#56697a", "#a67f3e", "#34689c", "#62aef7", "#7d6bb0", "#54497a"),
)
THEMES = (LIGHT, DARK)
DPI = 160
POINTS_PER_INCH, LABELS_APART = 72, 1.0
# Ticks within a power of ten of a logarithmic axis, where it is so many times as high as it begins, and where not.
DECADES_OF_FEW, FEW, MANY = 20.0, (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def check_matplotlib() -> None:
    """Tell before anything is measured that nothing could be drawn.

    Raises:
        CommandError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError('pictures need matplotlib, which is not installed: pip install "pinstream[bench]"')


def save(directory: Path, name: str, width: float, height: float, paint: Callable[[Any, Theme], None]) -> list[Path]:
    """Draw a figure in every theme and format.

    Args:
        directory: Where to; made if it is not there.
        name: Of the files, without theme and ending.
        width: Inches.
        height: Inches.
        paint: Draws on a matplotlib figure.
    """
    import matplotlib as mpl

    # No screen is needed, and none is looked for.
    mpl.use("agg")
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for theme in THEMES:
        with mpl.rc_context(_settings(theme)):
            figure = Figure(figsize=(width, height), layout="constrained")
            paint(figure, theme)
            for ending in ("png", "svg"):
                file = directory / f"{name}-{theme.name}.{ending}"
                # No date in it: the same figures make the same file.
                metadata = {"Date": None} if ending == "svg" else {"Software": None}
                figure.savefig(file, dpi=DPI, facecolor=theme.page, metadata=metadata)
                written.append(file)
    return written


def _settings(theme: Theme) -> Any:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
        "font.size": 9,
        "text.color": theme.ink,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "svg.hashsalt": "pinstream",
        "svg.fonttype": "none",
    }


def label(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str, **more: Any) -> Any:
    """Text beside a point, `offset` points away from it; lines end around it."""
    around = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    more = {"annotation_clip": False, "zorder": 4, "bbox": around, **more}
    return axes.annotate(text, at, xytext=offset, textcoords="offset points", color=colour, **more)


def log_ticks(axis: Any, lowest: float, highest: float) -> None:
    """Ticks of a logarithmic axis as plain numbers, some for each power of ten: more where there are few of these."""
    from matplotlib.ticker import LogLocator, NullFormatter

    between = FEW if highest > DECADES_OF_FEW * lowest else MANY
    axis.set_major_locator(LogLocator(10, subs=between, numticks=100))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def spread_apart(figure: Any, labels: Sequence[Any], others: Sequence[Any] = ()) -> None:
    """Move labels up until none lies over another, or over `others`; for when all else is painted."""
    figure.draw_without_rendering()
    boxes: list[Any] = [text.get_window_extent() for text in others]
    for text in sorted(labels, key=lambda text: float(text.get_window_extent().y0)):
        box = text.get_window_extent()
        for below in sorted(boxes, key=lambda other: float(other.y0)):
            if box.overlaps(below):
                x, y = text.xyann
                text.xyann = (x, y + (below.y1 - box.y0) * POINTS_PER_INCH / figure.dpi + LABELS_APART)
                box = text.get_window_extent()
        boxes.append(box)
