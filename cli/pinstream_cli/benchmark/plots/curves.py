"""Latency against throughput, and both against what grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pinstream_cli.benchmark.plots.rows import Row, names_of, series_of
from pinstream_cli.benchmark.plots.theme import Theme, label, log_ticks, save, spread_apart

# A line whose best is so many times the best of all others and of the bare engine is told instead of drawn: an empty
# model, on a CPU, would have the others at the edge.
OFF_SCALE = 2
# For the labels, above and below the lines.
ROOM = 0.1


def latency_throughput(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """One line a series, one point a concurrency; the bare engine's best as an upright line."""
    reference = content["rows"][0]
    series = series_of(content["rows"], reference["name"])
    beyond = _off_scale(series, reference["images_per_s"])
    drawn = {name: rows for name, rows in series.items() if name not in beyond}
    alike = len({tuple(row["concurrency"] for row in rows) for rows in drawn.values()}) == 1

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        lines = zip(_colours(theme, len(drawn)), drawn.items(), strict=True)
        names, numbers = [], []
        for colour, (name, rows) in lines:
            names.append(_line(axes, rows, name, colour, ours=colour == theme.ours))
            numbers += _numbers(axes, rows, theme) if colour == theme.ours or not alike else []
        best = reference["images_per_s"]
        axes.axvline(best, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        text = f"{reference['name']}, batch {reference['batch']}"
        above = {"transform": axes.get_xaxis_transform(), "ha": "right"}
        numbers.append(axes.text(best, 1.005, f"{text}  {best:,.0f}", color=theme.muted, **above))
        axes.set_yscale("log")
        latencies = [row["p50_ms"] for rows in drawn.values() for row in rows]
        log_ticks(axes.yaxis, min(latencies), max(latencies))
        axes.margins(y=ROOM)
        axes.set_xlim(0, 1.25 * max(best, *map(_best, drawn.values())))
        axes.set_xlabel("images a second")
        axes.set_ylabel("ms a request, median")
        figure.suptitle("Latency and throughput", x=0.02, ha="left", fontweight="bold", fontsize=11)
        told = [names_of(content), f"numbers: requests under way{', alike on all lines' * alike}"]
        told += [f"not drawn: {name}, up to {best:,.0f} a second" for name, best in beyond.items()]
        figure.supxlabel("; ".join(told), x=0.02, ha="left", fontsize=7, color=theme.muted)
        spread_apart(figure, names, numbers)

    return save(directory, f"{content['suite']}-latency-throughput", 8, 5, paint) if drawn else []


def batch_sizes(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Images a second of bare loops against the batch size, one line a loop."""
    series: dict[str, list[Row]] = {}
    for row in sorted(content["rows"], key=lambda row: row["batch"]):
        series.setdefault(row["name"], []).append(row)
    sizes = sorted({row["batch"] for row in content["rows"]})

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        names = []
        for colour, (name, rows) in zip(_colours(theme, len(series)), series.items(), strict=True):
            names.append(_grows(axes, [row["batch"] for row in rows], rows, name, colour, beside=True))
        _powers_of_two(axes, sizes)
        axes.set_ylim(0, max(map(_top, series.values())))
        axes.set_xlabel("items of a run")
        axes.set_ylabel("images a second")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)
        spread_apart(figure, names)

    return save(directory, f"{content['suite']}-batch-sizes", 6, 3.6, paint)


def latency_growth(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """p50 against the requests under way, and what it is where it grows linearly from saturation on."""
    axis = next((axis for axis in content.get("axes", ()) if axis["title"] == "Concurrency"), {"rows": ()})
    rows, saturated = [content["rows"][i] for i in axis["rows"]], _saturated_at(content)

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        xs, ys = [row["concurrency"] for row in rows], [row["p50_ms"] for row in rows]
        axes.plot(xs, ys, color=theme.ours, linewidth=1.8, marker="o", markersize=4)
        label(axes, f"{ys[-1]:,.3g} ms", (xs[-1], ys[-1]), (-6, 5), theme.ours, ha="right")
        full = [(x, y) for x, y in zip(xs, ys, strict=True) if x >= saturated]
        if saturated and len(full) > 1:
            slope = median(y / x for x, y in full)
            axes.plot(xs, [slope * x for x in xs], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
            text = f"linear: {slope:.3g} ms for each,\nas from {saturated} on"
            middle = xs[len(xs) // 2]
            label(axes, text, (middle, slope * middle), (8, -4), theme.muted, fontsize=7, va="top")
        _powers_of_two(axes, xs)
        axes.set_yscale("log")
        log_ticks(axes.yaxis, min(ys), max(ys))
        axes.set_xlabel("requests under way")
        axes.set_ylabel("ms a request, median")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)

    return save(directory, f"{content['suite']}-latency", 6, 3.6, paint) if len(rows) > 1 else []


def _saturated_at(content: Mapping[str, Any]) -> int:
    return int(content.get("growth", {}).get("concurrency", {}).get("saturated_at", 0))


def _off_scale(series: Mapping[str, Sequence[Row]], bare: float) -> dict[str, float]:
    """The best of the series that are not drawn."""
    best = {name: _best(rows) for name, rows in series.items()}
    beside = {name: max(bare, *(b for other, b in best.items() if other != name), 0.0) for name in best}
    return {name: best[name] for name in best if best[name] > OFF_SCALE * beside[name]}


def _best(rows: Sequence[Row]) -> float:
    return max(float(row["images_per_s"]) for row in rows)


def growth(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Images a second against concurrency, request size and image size, one small picture each."""
    shown = [axis for axis in content.get("axes", ()) if len(axis["rows"]) > 1]

    def paint(figure: Any, theme: Theme) -> None:
        for axes, axis in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            rows = [content["rows"][i] for i in axis["rows"]]
            _grows(axes, axis["values"], rows, f"{rows[-1]['images_per_s']:,.0f}", theme.ours)
            _powers_of_two(axes, axis["values"])
            axes.set_ylim(0, _top(rows))
            axes.set_title(axis["title"])
        figure.axes[0].set_ylabel("images a second")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)

    return save(directory, f"{content['suite']}-growth", 3.6 * len(shown), 3.4, paint) if shown else []


def image_sizes(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Throughput of a sweep against requests under way, one line an image size, each relative to its own best."""
    series = series_of([row for row in content["rows"] if row["batch"] == 1], content["rows"][0]["name"])
    curves = {_size_of(name): rows for name, rows in series.items() if len(rows) > 1}

    def paint(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        names, top = [], 0.0
        for colour, (name, rows) in zip(_colours(theme, len(curves)), curves.items(), strict=True):
            of_best = [{**row, "images_per_s": row["images_per_s"] / _best(rows)} for row in rows]
            xs, top = [row["concurrency"] for row in rows], max(top, _top(of_best))
            names.append(_grows(axes, xs, of_best, f"{name}: {_best(rows):,.0f}", colour, beside=True))
        _powers_of_two(axes, sorted({row["concurrency"] for rows in curves.values() for row in rows}))
        axes.set_ylim(0, top)
        axes.set_xlabel("requests under way")
        axes.set_ylabel("images a second, of the best of each size")
        figure.supxlabel(names_of(content), x=0.02, ha="left", fontsize=7, color=theme.muted)
        spread_apart(figure, names)

    drawn = content.get("axes") and len(curves) > 1
    return save(directory, f"{content['suite']}-image-sizes", 6, 3.6, paint) if drawn else []


def _size_of(name: str) -> str:
    """The image size out of the name of a sweep's row."""
    return name.rpartition(", ")[2]


def _grows(axes: Any, xs: Sequence[int], rows: Sequence[Row], name: str, colour: str, *, beside: bool = False) -> Any:
    """Throughput with its spread; the label at its end, above it or `beside` it."""
    ys = [row["images_per_s"] for row in rows]
    axes.plot(xs, ys, color=colour, linewidth=1.8, marker="o", markersize=4)
    for x, row in zip(xs, rows, strict=True):
        axes.plot([x, x], _ends(row), color=colour, alpha=0.4)
    where = {"ha": "left", "va": "center"} if beside else {"ha": "right"}
    return label(axes, name, (xs[-1], ys[-1]), (9, 0) if beside else (-2, 7), colour, **where)


def _ends(row: Row) -> tuple[float, float]:
    """Where the bar of a row's spread begins and ends."""
    rate, half = row["images_per_s"], (row["spread"] or 0.0) / 2
    return rate * (1 - half), rate * (1 + half)


def _top(rows: Sequence[Row]) -> float:
    """The upper edge of a picture, with room for a label above the best, and all of the spread in it."""
    return max(1.15 * _best(rows), *(1.05 * _ends(row)[1] for row in rows))


def _powers_of_two(axes: Any, values: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _colours(theme: Theme, count: int) -> list[str]:
    # The first series is what the picture is about.
    return [theme.ours, *(theme.others[i % len(theme.others)] for i in range(count - 1))]


def _line(axes: Any, rows: Sequence[Row], name: str, colour: str, *, ours: bool) -> Any:
    """What the picture is about lies above the others; the label at its end."""
    xs, ys = [row["images_per_s"] for row in rows], [row["p50_ms"] for row in rows]
    axes.plot(xs, ys, color=colour, linewidth=2 if ours else 1.4, zorder=3 if ours else 2)
    # Above the labels, which have a ground of their own.
    axes.plot(xs, ys, color=colour, linestyle="none", marker="o", markersize=4, zorder=5)
    return label(axes, name, (xs[-1], ys[-1]), (6, 2), colour, fontweight="bold" if ours else "normal")


def _numbers(axes: Any, rows: Sequence[Row], theme: Theme) -> list[Any]:
    """The requests under way, at each point."""
    points = [(row["images_per_s"], row["p50_ms"]) for row in rows]
    numbers = [str(row["concurrency"]) for row in rows]
    return [
        label(axes, number, point, (-3, 6), theme.muted, fontsize=7, ha="right")
        for number, point in zip(numbers, points, strict=True)
    ]
