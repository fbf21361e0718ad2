"""What lies in benchmarks/results says what it is of, the pages name all of it, and headline figures are the data's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FIELDS = {"name", "batch", "concurrency", "images_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "spread"}
# The pages that name them: what holds now, and what was before.
PAGES = ("benchmarks/README.md", "benchmarks/HISTORY.md")
# As benchmarks/README.md says of them: they are older than the command is kept.
WITHOUT_A_COMMAND = {"gpu-tests-2026-11-22.json", "gpu-tests-two-gpus.json"}
# Not a measurement of this repository's code alone, or put together by hand.
OTHERS = {"raw", "training"}


def results() -> list[Path]:
    return [file for file in sorted(RESULTS.rglob("*.json")) if not OTHERS & set(file.relative_to(RESULTS).parts)]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def words(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


@pytest.mark.parametrize("file", results(), ids=lambda file: file.stem)
def test_a_result_says_what_it_is_of(file: Path) -> None:
    result = json.loads(file.read_text())
    expected = {"date", "commit", "machine"} | ({"command"} if file.name not in WITHOUT_A_COMMAND else set())
    assert expected <= result.keys()
    # Those of tests, memory, fuzzing, chaos, soaks and load have other things than rows, those of accuracy other rows.
    for row in result.get("rows", []) if result.get("suite") != "eval" else []:
        assert row.keys() >= FIELDS
        assert all(row[field] is None or isinstance(row[field], float | int) for field in FIELDS - {"name"})


def test_the_page_names_every_result_and_no_other() -> None:
    named = {name for page in PAGES for name in re.findall(r"`([\w./-]+\.json)`", (ROOT / page).read_text())}
    assert {str(file.relative_to(RESULTS)) for file in results()} <= named
    assert [name for name in named if not (RESULTS / name).is_file() and "/" in name] == []


def test_the_fuzzers_figures_are_of_all_its_targets() -> None:
    found = read("fuzz.json")
    assert TARGETS.keys() | {"served"} <= found.keys()
    assert any(outcome.startswith("references: ") for outcome in found["served"]["outcomes"])


def test_the_headline_is_what_the_comparison_has() -> None:
    rows = read("gpu/compare-h100.json")["rows"]
    singles = {(row["name"], row["concurrency"]): row for row in rows if row["batch"] == 1 and row["concurrency"]}
    best = max((row for (name, _), row in singles.items() if name == "pinstream"), key=lambda row: row["images_per_s"])
    bare = rows[0]["images_per_s"]

    def times(peer: str, *concurrencies: int) -> str:
        found = [
            singles["pinstream", each]["images_per_s"] / singles[peer, each]["images_per_s"] for each in concurrencies
        ]
        return f"{min(found):.1f} to {max(found):.1f}"

    page = words("docs/performance.md")
    served = f"{best['images_per_s']:,.0f} a second, {best['ratio_to_bare']:.2f}"
    assert f"{served} of the bare engine's {bare:,.0f}" in page
    assert f"{times('classic', 8, 32, 64, 128, 256)} times the classic loop" in page
    assert f"{times('torch', 8, 32, 64, 128, 256)} times compiled PyTorch" in page


@pytest.mark.parametrize(
    ("name", "named_in"),
    [
        ("gpu/sweep-h100.json", "benchmarks/README.md"),
        ("gpu/sweep-slow-h100.json", "benchmarks/HISTORY.md"),
        ("sweep-cpu.json", "benchmarks/README.md"),
    ],
    ids=["sweep-h100", "sweep-slow-h100", "sweep-cpu"],
)
def test_where_a_sweep_falls_the_page_says_so(name: str, named_in: str) -> None:
    page = words(named_in)
    for note in read(name)["notes"]:
        for share in re.findall(r"falls by ([\d.]+)%", note):
            assert f"{share} %" in page


def section(page: str, title: str) -> str:
    """What stands under a heading of a page, until the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_table_of_lone_requests_has_the_medians_of_its_files() -> None:
    checked = 0
    for line in "".join(section(page, "One request at a time") for page in PAGES).splitlines():
        cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
        file = re.fullmatch(r"`(gpu/[\w-]+\.json)`", cells[-1]) if cells else None
        if file is None:
            continue
        lone = [row for row in read(file[1])["rows"] if (row["batch"], row["concurrency"]) == (1, 1)]
        medians = {f"{row['p50_ms']:.2f}" for row in lone}
        said = {cell for cell in cells[2:-1] if re.fullmatch(r"\d\.\d\d", cell)}
        assert said <= medians, (line, said - medians)
        checked += 1
    assert checked >= 10
