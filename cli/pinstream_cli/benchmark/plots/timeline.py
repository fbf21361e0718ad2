"""What went on when: one lane for each thing that can be busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.theme import Theme, save
from pinstream_cli.benchmark.trace import (
    COPY_LANE,
    ENGINE_LANE,
    ENGINE_PROCESS,
    Span,
    computing,
    gaps,
    say_computing,
    without_echoes,
)

# The engine's lanes, and the instance's around them: its batches lie within its executes, and what is not gathering or
# scattering there is waiting. A batch as a whole is the sum of the others and is left out.
COPYING = "engine, filling and copying in"
LANES = {ENGINE_LANE: "engine", COPY_LANE: COPYING, "execute": "instance", "host": "instance"}
COLOURS = {"execute": 0, "gather": 2, "h2d": 3, "compute": 4, "d2h": 5, "scatter": 1}
TEXTS = {"execute": "execute (waiting)"}
H2D = "h2d: from a batch's first copy to the GPU to its last, and so the time in which it waits to be filled, too"
# A batch's images are written on it where it takes at least this share of the picture.
NUMBERED = 0.03
# Inches of a lane in the picture of everything, and in that of the part that is drawn large.
SMALL, LARGE = 0.16, 0.32


def timeline(
    found: Sequence[Span], milliseconds: float, zoom_ms: float, title: str, names: str, directory: Path
) -> list[Path]:
    """Draw a window of a trace, and a part in the middle of it large below.

    Args:
        found: What went on in it.
        milliseconds: Length of the window.
        zoom_ms: Length of the part. Where it is no shorter than the window, that is drawn large.
        title: Of the picture.
        names: Machine and commit, for below the picture.
        directory: Where it goes.
    """
    lanes = _lanes(found)
    middle = ((milliseconds - zoom_ms) / 2, (milliseconds + zoom_ms) / 2)
    parts = [(0.0, milliseconds), middle] if zoom_ms < milliseconds else [(0.0, milliseconds)]
    heights = [SMALL, LARGE][-len(parts) :]
    told = [f"{say_computing(computing(found, milliseconds))} of these {milliseconds:g} ms", names]
    if any(lane == COPYING for lane, _ in lanes):
        told[1:1] = [H2D]

    def paint(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, part, height in zip(panels, parts, heights, strict=True):
            _panel(axes, lanes, milliseconds, part, theme, large=height == LARGE)
        if len(panels) > 1:
            panels[0].axvspan(*middle, facecolor="none", edgecolor=theme.ink, linewidth=1.2, zorder=5)
        _legend(panels[0], {span.name for of_lane in lanes.values() for span in of_lane}, theme)
        figure.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=11)
        figure.supxlabel("\n".join(told), x=0.02, ha="left", fontsize=8, color=theme.muted)

    return save(directory, "timeline", 11, 2.1 + sum(heights) * len(lanes), paint)


def _lanes(found: Sequence[Span]) -> dict[tuple[str, str], list[Span]]:
    """What is drawn, by the lane's name and the process."""
    lanes: dict[tuple[str, str], list[Span]] = {}
    for span in without_echoes(found):
        if span.lane in LANES:
            lanes.setdefault((LANES[span.lane], span.process), []).append(span)
    return dict(sorted(lanes.items()))


def _legend(axes: Any, drawn: Set[str], theme: Theme) -> None:
    names = [name for name in COLOURS if name in drawn]
    for name in names:
        axes.barh([0], [0], color=theme.stages[COLOURS[name]], label=TEXTS.get(name, name))
    axes.barh([0], [0], label="idle", **_hatched(theme))
    axes.legend(ncols=len(names) + 1, loc="lower left", bbox_to_anchor=(-0.005, 1.0), frameon=False, handlelength=0.9)


def _panel(
    axes: Any,
    lanes: Mapping[tuple[str, str], Sequence[Span]],
    milliseconds: float,
    part: tuple[float, float],
    theme: Theme,
    *,
    large: bool,
) -> None:
    """The lanes from one time to another, in milliseconds of the window."""
    for y, ((lane, _), of_lane) in enumerate(lanes.items()):
        if lane == LANES[ENGINE_LANE]:
            idle = [gap for gap in gaps(of_lane, milliseconds) if gap[0] < part[1] and gap[1] > part[0]]
            _idle(axes, y, idle, theme, large=large)
        _lane(axes, y, of_lane, part, theme, large=large)
    titles = [_title(process, lane) for lane, process in lanes]
    axes.set_yticks(range(len(lanes)), titles, color=theme.ink, fontsize=9 if large else 7)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(*part)
    axes.set_xlabel("ms")
    axes.grid(visible=False, axis="y")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _title(process: str, lane: str) -> str:
    if process == ENGINE_PROCESS:
        return "engine's host copies" if lane == "instance" else lane
    return f"{process}, {lane}"


def _idle(axes: Any, y: int, idle: Sequence[tuple[float, float]], theme: Theme, *, large: bool) -> None:
    bars = [(began, ended - began) for began, ended in idle]
    axes.broken_barh(bars, (y - 0.36, 0.72), **_hatched(theme)).set_rasterized(not large)


def _hatched(theme: Theme) -> dict[str, Any]:
    return {"facecolor": theme.page, "edgecolor": theme.muted, "hatch": "//////", "linewidth": 0.0}


def _lane(axes: Any, y: int, found: Sequence[Span], part: tuple[float, float], theme: Theme, *, large: bool) -> None:
    first, last = part
    found = [span for span in found if span.began < last and span.ended > first]
    for name in COLOURS:
        bars = [(s.began, s.ended - s.began) for s in found if s.name == name]
        colour = theme.stages[COLOURS[name]]
        # A second has thousands of them: as pixels, and without gaps, which would be all that is to be seen.
        width = 0.4 if large else 0.0
        drawn = axes.broken_barh(bars, (y - 0.36, 0.72), facecolors=colour, edgecolor=theme.page, linewidth=width)
        drawn.set_rasterized(not large)
    for span in found:
        begin, end = max(first, span.began), min(last, span.ended)
        if span.name == "compute" and end - begin > (last - first) * NUMBERED:
            axes.text((begin + end) / 2, y, str(span.items), ha="center", va="center", fontsize=7, color=theme.page)
