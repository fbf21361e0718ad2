"""Where the time goes: a request's stages in Triton, and in an ensemble's steps, and a batch's in the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from pinstream.metrics import STAGES as OF_A_BATCH
from pinstream_cli.benchmark.perf_analyzer import STAGES as COLUMNS
from pinstream_cli.benchmark.plots.rows import Row, names_of, series_of
from pinstream_cli.benchmark.plots.theme import Theme, save
from pinstream_cli.benchmark.stages import WAITING

OF_A_REQUEST = tuple(COLUMNS.values())
# Alike is alike in both pictures: ways to and from the client, waiting, copies in, computing, copies out.
COLOURS = {
    **{"send": 0, "network": 1, "queue": 2, "compute_input": 3, "compute_infer": 4, "compute_output": 5, "receive": 6},
    **{"gather": 1, "h2d": 3, "compute": 4, "d2h": 5, "scatter": 6},
}
# What the client counts and Triton does not: the way between them, and what a batch takes after `execute` has returned.
TEXTS = {"network": "elsewhere"}
NOT_IN_LEGEND = "_"
WAITING_COLOUR, OF_STEPS = COLOURS["queue"], (1, 4, 5, 3, 6, 0)


def stages(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Stacked bars: where a request's time goes, also in an ensemble's steps, and a batch's that the backend runs.

    The first series has a bar for each concurrency, the others one for the highest.
    """
    series = series_of(content["rows"], content["rows"][0]["name"])
    shown_rows = [(name, row) for i, (name, rows) in enumerate(series.items()) for row in (rows[-1:] if i else rows)]
    of_requests = {f"{name} at {row['concurrency']}": row for name, row in shown_rows}
    of_batches = {name: row for name, row in of_requests.items() if any(s in row["stages_ms"] for s in OF_A_BATCH)}
    steps = tuple(dict.fromkeys(s for row in of_requests.values() for s in row["stages_ms"] if s not in COLOURS))
    panels: dict[str, tuple[tuple[str, ...], dict[str, Row]]] = {
        "A request's way through Triton": (OF_A_REQUEST, of_requests),
        "A request's way through the steps": (steps, of_requests if steps else {}),
        "A batch's way through the backend": (OF_A_BATCH, of_batches),
    }
    shown = {title: panel for title, panel in panels.items() if panel[1]}
    count = sum(len(bars) for _, bars in shown.values())

    def paint(figure: Any, theme: Theme) -> None:
        heights = [len(bars) + 1 for _, bars in shown.values()]
        all_axes = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (title, (names, bars)) in zip(all_axes, shown.items(), strict=True):
            _bars(axes, bars, names, theme)
            axes.set_title(title, pad=22)
        all_axes[-1].set_xlabel("share of the time; at the right the whole of it in ms")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)

    return save(directory, f"{content['suite']}-stages", 8, 2.2 + 0.25 * count, paint) if shown else []


def _bars(axes: Any, bars: Mapping[str, Row], names: Sequence[str], theme: Theme) -> None:
    totals = [sum(row["stages_ms"].get(name, 0.0) for name in names) or 1e-9 for row in bars.values()]
    lefts = [0.0] * len(bars)
    colours = _colours(names)
    for name in names:
        widths = [row["stages_ms"].get(name, 0.0) / total for row, total in zip(bars.values(), totals, strict=True)]
        colour, text = theme.stages[colours[name]], _text(name, names)
        axes.barh(list(bars), widths, left=lefts, height=0.74, color=colour, edgecolor=theme.page, lw=0.6, label=text)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for y, total in enumerate(totals):
        axes.text(1.01, y, f"{total:.3g}", va="center", fontsize=8, color=theme.ink)
    axes.legend(
        ncols=len(COLOURS),
        # To the left there is room wherever names are long.
        loc="lower right",
        bbox_to_anchor=(1.01, 0.995),
        frameon=False,
        fontsize=8,
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.4,
        columnspacing=1.2,
        borderpad=0.2,
    )
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(axis="y", colors=theme.ink, labelsize=8)


def _colours(names: Sequence[str]) -> dict[str, int]:
    """Numbers of colours, those of an ensemble's steps in their order, and one for waiting for any of them."""
    own = cycle(OF_STEPS)
    waiting = _waiting(names)
    return {n: COLOURS[n] if n in COLOURS else WAITING_COLOUR if n in waiting else next(own) for n in names}


def _text(name: str, names: Sequence[str]) -> str:
    """For the legend, where waiting for steps is told once."""
    waiting = _waiting(names)
    if name not in waiting:
        return TEXTS.get(name, name.replace("_", " "))
    return "waiting" if name == waiting[0] else NOT_IN_LEGEND


def _waiting(names: Sequence[str]) -> list[str]:
    return [WAITING.format(name) for name in names if WAITING.format(name) in names]
