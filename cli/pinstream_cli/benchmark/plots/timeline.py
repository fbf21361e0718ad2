"""What went on when: one lane for each thing that can be busy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.theme import Theme, save
from pinstream_cli.benchmark.trace import COPY_LANE, ENGINE_LANE, ENGINE_PROCESS, Span, busy, gaps, without_echoes

# The engine's lanes, and the instance's around them: its batches lie within its executes, and what is not gathering or
# scattering there is waiting. A batch as a whole is the sum of the others and is left out.
COPYING = "engine, copying in"
LANES = {ENGINE_LANE: "engine", COPY_LANE: COPYING, "execute": "instance", "host": "instance"}
COLOURS = {"execute": 0, "gather": 2, "h2d": 3, "compute": 4, "d2h": 5, "scatter": 1}
TEXTS = {"execute": "execute (waiting)"}
LONGEST_TEXT_MS = 3.0


def timeline(found: Sequence[Span], milliseconds: float, title: str, directory: Path) -> list[Path]:
    """Draw a window of a trace."""
    lanes: dict[tuple[str, str], list[Span]] = {}
    found = without_echoes(found)
    for span in found:
        if span.lane in LANES:
            lanes.setdefault((LANES[span.lane], span.process), []).append(span)
    lanes = dict(sorted(lanes.items()))

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        for y, ((lane, _), of_lane) in enumerate(lanes.items()):
            if lane == LANES[ENGINE_LANE]:
                _idle(axes, y, gaps(of_lane, milliseconds), theme)
            _lane(axes, y, of_lane, milliseconds, theme)
        titles = [_title(process, lane) for lane, process in lanes]
        axes.set_yticks(range(len(lanes)), titles, color=theme.ink)
        axes.set_ylim(len(lanes) - 0.4, -0.6)
        axes.set_xlim(0, milliseconds)
        axes.set_xlabel("ms")
        axes.grid(visible=False, axis="y")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        names = [name for name in COLOURS if any(span.name == name for span in found)]
        for name in names:
            axes.barh([0], [0], color=theme.stages[COLOURS[name]], label=TEXTS.get(name, name))
        axes.barh([0], [0], label="idle", **_hatched(theme))
        axes.legend(
            ncols=len(names) + 1, loc="lower left", bbox_to_anchor=(-0.005, 1.0), frameon=False, handlelength=0.9
        )
        figure.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=11)
        share = busy(found, "compute", milliseconds)
        figure.supxlabel(f"the engine computes {share:.1%} of the time", x=0.02, ha="left", color=theme.muted)

    return save(directory, "timeline", 11, 1.8 + 0.32 * len(lanes), paint)


def _title(process: str, lane: str) -> str:
    if process == ENGINE_PROCESS:
        return "engine's host copies" if lane == "instance" else lane
    return f"{process}, {lane}"


def _idle(axes: Any, y: int, idle: Sequence[tuple[float, float]], theme: Theme) -> None:
    axes.broken_barh([(began, ended - began) for began, ended in idle], (y - 0.36, 0.72), **_hatched(theme))


def _hatched(theme: Theme) -> dict[str, Any]:
    return {"facecolor": theme.page, "edgecolor": theme.muted, "hatch": "//////", "linewidth": 0.0}


def _lane(axes: Any, y: int, found: Sequence[Span], milliseconds: float, theme: Theme) -> None:
    for name in COLOURS:
        bars = [(s.began, s.ended - s.began) for s in found if s.name == name]
        colour = theme.stages[COLOURS[name]]
        axes.broken_barh(bars, (y - 0.36, 0.72), facecolors=colour, edgecolor=theme.page, linewidth=0.4)
    for span in found:
        begin, end = max(0.0, span.began), min(milliseconds, span.ended)
        if span.name == "compute" and end - begin > milliseconds * LONGEST_TEXT_MS / 100:
            axes.text((begin + end) / 2, y, str(span.items), ha="center", va="center", fontsize=7, color=theme.page)
