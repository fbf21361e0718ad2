"""Pictures: which are drawn of which result, in both themes and formats, and what is written on them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from pinstream_cli.benchmark import trace
from pinstream_cli.benchmark.plots import draw
from pinstream_cli.benchmark.plots.curves import _top
from pinstream_cli.benchmark.plots.rows import series_of
from pinstream_cli.benchmark.plots.theme import label, spread_apart
from pinstream_cli.benchmark.plots.timeline import timeline
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main

STAGES = {"send": 0.1, "queue": 2.0, "compute_infer": 8.0, "compute_output": 0.3}


def row(name: str, concurrency: int, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "batch": 1,
        "concurrency": concurrency,
        "images_per_s": rate,
        "p50_ms": concurrency / rate * 1e3,
        "p99_ms": 1.0,
        "ratio_to_bare": 0.9,
        "spread": 0.1,
        "stages_ms": STAGES,
        **more,
    }


def content(**more: Any) -> dict[str, Any]:
    rows = [row("bare loop", 1, 2900.0, stages_ms={})]
    rows += [row("pinstream", c, rate) for c, rate in ((1, 300.0), (32, 2000.0), (256, 2800.0))]
    rows[-1]["stages_ms"] = {**STAGES, "gather": 0.4, "compute": 11.0}
    rows += [row("classic", c, rate) for c, rate in ((1, 200.0), (32, 500.0))]
    rows.append(row("pinstream", 0, 1900.0, requests_per_s=1960.0))
    machine = {"cpu": "AMD EPYC", "cores": 16, "gpus": ["NVIDIA H200, 580.1"]}
    return {
        "suite": "compare",
        "commit": "0" * 40,
        "date": "2026-11-22T00:00",
        "machine": machine,
        "rows": rows,
        **more,
    }


def names(files: Sequence[Path]) -> set[str]:
    return {file.name for file in files if file.stat().st_size > 1000}


def both(*pictures: str) -> set[str]:
    return {f"{name}-{theme}.{end}" for name in pictures for theme in ("light", "dark") for end in ("png", "svg")}


def test_a_comparison_is_drawn_as_curves_and_stages(tmp_path: Path) -> None:
    assert names(draw(content(), tmp_path)) == both("compare-latency-throughput", "compare-stages")
    curves = (tmp_path / "compare-latency-throughput-dark.svg").read_text()
    # Lines are labelled where they end, and the machine is named.
    for text in ("pinstream", "classic", "bare loop, batch 1", "NVIDIA H200", ">256<"):
        assert text in curves
    stages = (tmp_path / "compare-stages-light.svg").read_text()
    assert "elsewhere" in stages
    assert "network" not in stages
    assert "A batch's way through the backend" in stages
    assert "compute infer" in stages


def test_an_ensemble_is_drawn_with_its_steps(tmp_path: Path) -> None:
    stages = {**STAGES, "decode, waiting": 1.0, "decode": 3.0, "detect, waiting": 2.0, "detect": 9.0}
    rows = [row("bare loop", 1, 2900.0, stages_ms={}), row("gRPC", 8, 300.0, stages_ms=stages)]
    draw(content(rows=rows), tmp_path)
    text = (tmp_path / "compare-stages-light.svg").read_text()
    assert "A request's way through the steps" in text
    assert [text.count(f">{name}<") for name in ("waiting", "decode", "detect")] == [1, 1, 1]
    assert ">15<" in text, "the whole of it, in ms"
    draw(content(), tmp_path)
    assert "through the steps" not in (tmp_path / "compare-stages-light.svg").read_text()


def test_no_name_of_a_line_lies_over_another(tmp_path: Path) -> None:
    alike = content()
    alike["rows"] += [row(name, 256, 2801.0) for name in ("looking", "sleeping", "waiting")]
    text = (draw(alike, tmp_path), (tmp_path / "compare-latency-throughput-light.svg").read_text())[1]
    heights = []
    for name in ("pinstream", "looking", "sleeping", "waiting"):
        found = re.search(rf'translate\([\d.]+ ([\d.]+)\)">{name}<|y="([\d.]+)"[^>]*>{name}<', text)
        assert found is not None, name
        heights.append(float(found[1] or found[2]))
    assert len(heights) == 4
    assert min(b - a for a, b in itertools.pairwise(sorted(heights))) > 8, "points of a line of text"


def test_no_name_lies_over_a_number() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    name, number = (label(axes, text, (0.5, 0.5), (0, 0), "black") for text in ("empty", "256"))
    spread_apart(figure, [name], [number])
    assert not name.get_window_extent().overlaps(number.get_window_extent())


def test_points_are_numbered_once_where_all_lines_have_the_same(tmp_path: Path) -> None:
    alike = [row("pinstream", c, 100.0 * c) for c in (1, 32)] + [row("classic", c, 50.0 * c) for c in (1, 32)]
    for rows, count, told in ((alike, 1, "alike on all lines"), ([*alike, row("classic", 64, 70.0)], 2, "")):
        draw(content(rows=[content()["rows"][0], *rows]), tmp_path)
        text = (tmp_path / "compare-latency-throughput-light.svg").read_text()
        assert text.count(">32<") == count
        assert "numbers: requests under way" in text
        assert ("alike on all lines" in text) is bool(told)


def test_ticks_are_plain_numbers_and_more_than_two(tmp_path: Path) -> None:
    # As on a CPU: from 15 to 60 ms.
    rows = [row("bare loop", 1, 140.0, stages_ms={}), *(row("pinstream", c, 66.0) for c in (1, 2, 4))]
    axes = [{"title": "Concurrency", "values": [1, 2, 4], "rows": [1, 2, 3]}]
    draw(content(rows=rows, suite="sweep", axes=axes), tmp_path)
    draw(content(rows=rows), tmp_path)
    for picture in ("sweep-latency", "compare-latency-throughput"):
        text = (tmp_path / f"{picture}-light.svg").read_text()
        assert all(f">{ms}<" in text for ms in (20, 30, 40, 50)), picture
        assert "10^" not in text
        assert "times" not in text.replace("random times", "")


def test_what_would_have_all_others_at_the_edge_is_told_instead(tmp_path: Path) -> None:
    for best, drawn in ((5500.0, True), (29_000.0, False)):
        rows = [*content()["rows"], row("empty", 1, best / 2), row("empty", 256, best)]
        draw(content(rows=rows), tmp_path)
        text = (tmp_path / "compare-latency-throughput-light.svg").read_text()
        assert (">empty<" in text) is drawn
        assert ("not drawn: empty, up to 29,000 a second" in text) is not drawn


def test_what_came_at_random_times_is_no_point_of_a_line() -> None:
    series = series_of(content()["rows"], "bare loop")
    assert {name: [row["concurrency"] for row in rows] for name, rows in series.items()} == {
        "pinstream": [1, 32, 256],
        "classic": [1, 32],
    }


def test_the_same_result_makes_the_same_files(tmp_path: Path) -> None:
    for file in draw(content(), tmp_path / "a"):
        other = tmp_path / "b" / file.name
        if not other.exists():
            draw(content(), tmp_path / "b")
        assert file.read_bytes() == other.read_bytes()


def test_a_sweep_is_drawn_as_growth(tmp_path: Path) -> None:
    axes = [
        {"title": "Concurrency", "values": [1, 32, 256], "rows": [1, 2, 3]},
        {"title": "Image side", "values": [640], "rows": [3]},
    ]
    growth = {"concurrency": {"saturated_at": 32}}
    rows = content()["rows"]
    drawn = draw(content(suite="sweep", axes=axes, growth=growth, rows=rows[:4]), tmp_path)
    assert names(drawn) == both("sweep-growth", "sweep-latency", "sweep-stages")
    text = (tmp_path / "sweep-growth-light.svg").read_text()
    assert "Concurrency" in text
    assert "Image side" not in text  # one point is no growth
    # p50 over requests under way, beside what it were if it grew linearly from saturation on: 16 ms at 32, 91 at 256.
    text = (tmp_path / "sweep-latency-light.svg").read_text()
    for words in ("requests under way", "linear: 0.429 ms for each", "as from 32 on", ">91.4 ms<"):
        assert words in text


def test_image_sizes_are_drawn_each_relative_to_its_best(tmp_path: Path) -> None:
    rows = [row("bare loop, 640 x 640", 1, 2900.0, stages_ms={})]
    rows += [row("gRPC, shared memory, 640 x 640", c, rate) for c, rate in ((1, 300.0), (64, 2800.0))]
    rows += [row("bare loop, 320 x 320", 1, 9700.0, stages_ms={})]
    rows += [row("gRPC, shared memory, 320 x 320", c, rate) for c, rate in ((1, 400.0), (64, 9600.0))]
    axes = [{"title": "Concurrency", "values": [1, 64], "rows": [1, 2]}]
    drawn = draw(content(suite="sweep", rows=rows, axes=axes), tmp_path)
    assert both("sweep-image-sizes") <= names(drawn)
    text = (tmp_path / "sweep-image-sizes-light.svg").read_text()
    for words in ("640 x 640: 2,800", "320 x 320: 9,600", "of the best of each size", ">1.0<"):
        assert words in text


def test_all_of_a_spread_is_in_the_picture() -> None:
    assert _top([row("pinstream", 1, 100.0, spread=0.8), row("pinstream", 2, 120.0)]) > 140
    assert _top([row("pinstream", 2, 120.0, spread=None)]) == pytest.approx(1.15 * 120)


def test_plot_redraws_a_file_and_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(content()))
    done = CliRunner().invoke(main, ["bench", "plot", str(tmp_path / "result.json"), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "plots").iterdir())) == 8
    (tmp_path / "other.json").write_text("[]")
    done = CliRunner().invoke(main, ["bench", "plot", str(tmp_path / "other.json"), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 2
    assert "is no result file" in done.output
    bare = content(rows=[row(name, 1, 100.0, stages_ms={}) for name in ("bare loop", "pinstream")])
    (tmp_path / "other.json").write_text(json.dumps(bare))
    done = CliRunner().invoke(main, ["bench", "plot", str(tmp_path / "other.json"), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 2
    assert "none of its rows has stages_ms" in done.output


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"suite": "limits", "rows": [{"name": "copies", "images_per_s": 9761, "stages_ms": None}]},
            "it is of limits, and",
        ),
        ({"rows": []}, "it does not say of which suite it is, and pictures are of what engine, serve, ensemble"),
        ({"suite": "serve", "rows": []}, "it is of serve, and has no rows"),
    ],
)
def test_of_another_kind_of_file_it_is_said_what_it_is_not(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    (tmp_path / "other.json").write_text(json.dumps(other))
    done = CliRunner().invoke(main, ["bench", "plot", str(tmp_path / "other.json"), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 2
    assert f"other.json has nothing to draw: {said}" in done.output
    assert "measure it again" not in done.output
    assert done.output.count("\n") == 1


def event(process: str, lane: str, name: str, ms: float, long: float) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "ts": ms * 1e3,
        "dur": long * 1e3,
        "pid": 1,
        "tid": lane,
        "args": {"process": process},
    }


def test_a_window_of_a_trace() -> None:
    events = [event("engine", "gpu", "compute", float(ms), 5.0) for ms in range(0, 111, 10)]
    # What went on before the load began, to warm up, is none of it: from 20 to 110 ms, and 20 in the middle of that.
    found = trace.spans(trace.window(events, 0.015, 0.020))
    assert [(span.began, span.ended) for span in found] == [(5.0, 10.0), (15.0, 20.0)]
    found = trace.spans(trace.window(events, 0.025, 0.022))
    assert [(span.began, span.ended) for span in found] == [(1.0, 6.0), (11.0, 16.0), (21.0, 26.0)]
    # 5 of the first and the second, 1 of the third: none counts beyond the window's ends.
    assert trace.busy(found, "compute", 22.0) == pytest.approx(0.5)


def test_a_recording_shorter_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event("engine", "gpu", "compute", float(ms), 5.0) for ms in range(0, 1001, 10)]
    assert len(trace.window(events, 0.0, 1.0)) == 100
    with pytest.raises(CommandError, match=r"0\.80 s of load were recorded; 1 s were asked for"):
        trace.window(events, 0.2, 1.0)
    with pytest.raises(CommandError, match=r"0\.00 s of load"):
        trace.window(events, 5.0, 1.0)
    # A process keeps the newest of its events.
    monkeypatch.setattr(trace, "MAX_EVENTS", 60)
    newest = [{**one, "pid": 2} for one in events[-60:]]
    both_processes = sorted([*events[:59], *newest], key=lambda one: float(one["ts"]))
    with pytest.raises(CommandError, match="more than the 60 events"):
        trace.window(both_processes, 0.0, 0.9)
    assert trace.window(both_processes, 0.0, 0.1)


def test_overlapping_spans_are_busy_once() -> None:
    found = trace.spans([event("engine", "gpu", "compute", 0.0, 10.0), event("engine", "gpu", "compute", 5.0, 10.0)])
    assert trace.busy(found, "compute", 20.0) == pytest.approx(0.75)


def test_engines_of_instances_compute_each_for_itself() -> None:
    lanes = [event("m_0", "gpu", "compute", 0.0, 10.0), event("m_1", "gpu", "compute", 10.0, 5.0)]
    shares = trace.computing(trace.spans(lanes), 20.0)
    assert shares == pytest.approx([0.5, 0.25])
    assert trace.say_computing(shares) == "on average each of the 2 engines computes 37.5%"
    # What instances repeat of an engine that they share is none of their own.
    shared = [*lanes, event("engine", "gpu", "compute", 0.0, 15.0)]
    assert trace.say_computing(trace.computing(trace.spans(shared), 20.0)) == "the engine computes 75.0%"


def test_what_is_between_spans_is_idle() -> None:
    spans = [(-1.0, 3.0), (1.0, 3.0), (6.0, 2.0), (8.0, 1.0)]
    found = trace.spans([event("engine", "gpu", "compute", began, long) for began, long in spans])
    assert trace.gaps(found, 10.0) == [(4.0, 6.0), (9.0, 10.0)]
    assert trace.gaps(found, 7.0) == [(4.0, 6.0)]
    assert trace.gaps(found, 3.0) == []
    assert trace.gaps([], 7.0) == [(0.0, 7.0)]


def test_instances_that_share_an_engine_have_one_lane_for_it(tmp_path: Path) -> None:
    events = [event("engine", "gpu", "compute", 0.0, 9.0), event("engine", "h2d", "h2d", 0.0, 2.0)]
    for instance in ("m_0", "m_1"):
        events += [event(instance, "execute", "execute", 0.0, 9.9), event(instance, "gpu", "compute", 0.0, 9.0)]
        events += [event(instance, "h2d", "h2d", 0.0, 2.0)]
        events += [event(instance, "host", "gather", 0.0, 1.0), event(instance, "batch", "batch", 0.0, 9.9)]
    timeline(trace.spans(events), 10.0, 10.0, "title", "H100; commit 1", tmp_path)
    text = (tmp_path / "timeline-light.svg").read_text()
    assert ">engine<" in text
    assert "m_0, instance" in text
    assert ">engine, filling and copying in<" in text
    assert "h2d: from a batch's first copy" in text
    assert "H100; commit 1" in text
    assert "m_0, engine" not in text
    assert ">idle<" in text
    assert "computes 90.0% of these 10 ms" in text


def test_a_second_is_drawn_whole_and_its_middle_large_below(tmp_path: Path) -> None:
    events = [event("engine", "gpu", "compute", float(ms), 4.0) for ms in range(0, 1000, 5)]
    for one in events:
        one["args"]["items"] = 16
    timeline(trace.spans(events), 1000.0, 50.0, "title", "H100; commit 1", tmp_path)
    text = (tmp_path / "timeline-light.svg").read_text()
    assert text.count(">engine<") == 2
    assert "h2d:" not in text, "nothing is copied"
    assert "computes 80.0% of these 1000 ms" in text
    assert ">1000<" in text, "the whole"
    assert ">500<" in text, "the middle"
    # Only batches of the part that is large are numbered and are shapes of their own.
    assert text.count(">16<") == 10
    assert text.count("<path") < 200
