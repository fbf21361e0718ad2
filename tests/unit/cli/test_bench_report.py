"""The report: medians, spread, result file, table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.report import Result, as_json, print_table, row, write_json, write_samples
from pinstream_cli.benchmark.sample import Measured, Sample, spread
from pinstream_cli.console import Console


class Named:
    """A subject that is only looked at."""

    def __init__(self, name: str, batch: int = 1, concurrency: int = 2) -> None:
        self.name = name
        self.batch = batch
        self.concurrency = concurrency

    def measure(self, seconds: float) -> Sample:
        raise AssertionError(seconds)


BARE = Measured(Named("bare"), [Sample(100.0, 20.0, 25.0, {"bench": 17.0})] * 3, [1.0] * 3)
SERVED = Measured(
    Named("gRPC", 8, 4),
    [
        Sample(80.0, 30.0, 90.0, {"tritonserver": 1.0, "detector": 17.0}, 0.02, {"Server Queue": "5"}),
        Sample(96.123456, 20.0, 30.0, {"tritonserver": 3.0, "detector": 18.0}, 0.0, {"Server Queue": "6"}),
        Sample(98.0, 21.0, 31.0, {"tritonserver": 2.0, "detector": 19.0, "ended": 0.0001}, 0.10),
    ],
    [0.80, 0.97, 0.96],
)
ONCE = Measured(Named("HTTP", 8, 4), [Sample(50.0, 1.0, 2.0, seconds=8.5)], [0.5])
MEASURED = [BARE, SERVED, ONCE]
RESULT = Result("serve", "the bare loop", [row(one) for one in MEASURED], MEASURED, {"numpy": "1"}, ["Seen."])
PLAN = Plan(repetitions=3, window_s=2.0, reference_s=0.5)


def test_a_row_holds_medians() -> None:
    found = row(SERVED)
    assert (found.name, found.batch, found.concurrency) == ("gRPC", 8, 4)
    assert (found.images_per_s, found.p50_ms, found.p99_ms) == (96.12, 21.0, 31.0)
    assert found.ratio_to_bare == 0.96  # of the ratios, not the ratio of the medians
    assert (found.spread, found.p99_spread) == (round(18 / 96.123456, 3), round(60 / 31, 3))
    assert found.foreign_cpu == 0.02


def test_cpu_time_largest_first_and_nothing_negligible() -> None:
    assert list(row(SERVED).cpu_ms_per_image.items()) == [("detector", 18.0), ("tritonserver", 2.0)]


def test_spread() -> None:
    assert spread([10.0]) == 0
    assert spread([9.0, 10.0, 12.0]) == pytest.approx(0.3)


def test_result_file(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "serve.json", as_json(RESULT, "pinstream bench serve", PLAN))
    content = json.loads((tmp_path / "new" / "serve.json").read_text())
    assert content.keys() >= {"suite", "command", "date", "commit", "machine", "rows"}
    assert content["suite"] == "serve"
    wanted = {"name", "batch", "concurrency", "images_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "spread"}
    assert all(line.keys() >= wanted for line in content["rows"])
    assert [(line["windows"], line["spread"]) for line in content["rows"]] == [(3, 0.0), (3, 0.187), (1, None)]
    assert [line["window_s"] for line in content["rows"]] == [0.0, 0.0, 8.5]
    assert content["method"]["windows"] == 7
    assert content["method"]["disturbed_windows"] == 1


def test_samples_have_a_line_a_window(tmp_path: Path) -> None:
    write_samples(tmp_path / "raw" / "serve.csv", RESULT.samples)
    lines = list(csv.DictReader((tmp_path / "raw" / "serve.csv").read_text().splitlines()))
    assert len(lines) == 7
    assert lines[3]["name"] == "gRPC"
    assert [line["Server Queue"] for line in lines] == ["", "", "", "5", "6", "", ""]
    assert (lines[4]["ratio_to_bare"], lines[6]["seconds"]) == ("0.97", "8.5")


def test_table_shows_ratios_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "machine", lambda: {"gpus": []})
    text = io.StringIO()
    print_table(RESULT, PLAN, Console(file=text, width=160))
    lines = text.getvalue().splitlines()
    assert lines[1].split()[:2] == ["ratio", "what"]
    assert any(line.split()[:2] == ["0.960", "gRPC"] and line.split()[7:9] == ["19%", "3"] for line in lines)
    assert any(
        line.split()[:2] == ["0.500", "HTTP"] and line.split()[7:] == ["-", "1", "of", "8.5", "s"] for line in lines
    )
    assert "Medians of so many windows of 2 s, those of the reference 0.5 s" in text.getvalue()
    assert "ratios are the result" in text.getvalue()
    assert "Seen." in text.getvalue()
