"""Latency against throughput, and throughput against what grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.rows import Row, names_of, series_of
from pinstream_cli.benchmark.plots.theme import Theme, label, save


def latency_throughput(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """One line a series, one point a concurrency; the bare engine's best as an upright line."""
    reference = content["rows"][0]
    series = series_of(content["rows"], reference["name"])

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        for colour, (name, rows) in zip(_colours(theme, len(series)), series.items(), strict=True):
            _line(axes, rows, name, colour, theme, numbered=colour == theme.ours)
        best = reference["images_per_s"]
        axes.axvline(best, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        text = f"{reference['name']}, batch {reference['batch']}"
        axes.text(
            best, 1.005, f"{text}  {best:,.0f}", color=theme.muted, transform=axes.get_xaxis_transform(), ha="right"
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, 1.25 * max(best, *(row["images_per_s"] for rows in series.values() for row in rows)))
        axes.set_xlabel("images a second")
        axes.set_ylabel("ms a request, median")
        figure.suptitle("Latency and throughput", x=0.02, ha="left", fontweight="bold", fontsize=11)
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)

    return save(directory, f"{content['suite']}-latency-throughput", 8, 5, paint) if series else []


def growth(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Images a second against concurrency, request size and image size, one small picture each."""
    shown = [axis for axis in content.get("axes", ()) if len(axis["rows"]) > 1]

    def paint(figure: Any, theme: Theme) -> None:
        for axes, axis in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            rows = [content["rows"][i] for i in axis["rows"]]
            xs, ys = axis["values"], [row["images_per_s"] for row in rows]
            axes.plot(xs, ys, color=theme.ours, linewidth=1.8, marker="o", markersize=4)
            for x, y, row in zip(xs, ys, rows, strict=True):
                half = y * (row["spread"] or 0.0) / 2
                axes.plot([x, x], [y - half, y + half], color=theme.ours, alpha=0.4)
            label(axes, f"{ys[-1]:,.0f}", (xs[-1], ys[-1]), (-2, 7), theme.ours, ha="right")
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x:g}" for x in xs])
            axes.minorticks_off()
            axes.set_ylim(0, 1.15 * max(ys))
            axes.set_title(axis["title"])
        figure.axes[0].set_ylabel("images a second")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)

    return save(directory, f"{content['suite']}-growth", 3.6 * len(shown), 3.4, paint) if shown else []


def _colours(theme: Theme, count: int) -> list[str]:
    # The first series is what the picture is about.
    return [theme.ours, *(theme.others[i % len(theme.others)] for i in range(count - 1))]


def _line(axes: Any, rows: Sequence[Row], name: str, colour: str, theme: Theme, numbered: bool) -> None:
    xs, ys = [row["images_per_s"] for row in rows], [row["p50_ms"] for row in rows]
    axes.plot(xs, ys, color=colour, linewidth=2 if numbered else 1.4, marker="o", markersize=4)
    label(axes, name, (xs[-1], ys[-1]), (6, 2), colour, fontweight="bold" if numbered else "normal")
    for x, y, row in zip(xs, ys, rows, strict=True):
        if numbered:
            label(axes, str(row["concurrency"]), (x, y), (-3, 6), theme.muted, fontsize=7, ha="right")
