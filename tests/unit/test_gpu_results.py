"""What benchmarks/README.md says of the tests on a GPU is what their outcome has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / "gpu-tests.json").read_text())
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return " ".join((BENCHMARKS / "README.md").read_text().split())


def precision_of(test: str) -> str:
    """What the plans of a test in test_accuracy.py compute in; FP32 where its name does not say."""
    found = re.search("exact|fp16", test)
    return found[0] if found else "fp32"


@pytest.mark.parametrize(
    ("plans", "precision"),
    [
        ("FP16", "fp16"),
        ("FP32, multiplied in TF32", "fp32"),
        ("FP32 with `--no-tf32`, in a process of its own", "exact"),
    ],
    # tests/gpu/conftest.py leaves out what has `exact` in its name.
    ids=["FP16", "TF32", "FP32"],
)
def test_the_worst_candidate_is_the_worst_of_all_tests(
    outcome: dict[str, Any], page: str, plans: str, precision: str
) -> None:
    measured = [
        test
        for test in outcome["tests"]
        if "test_accuracy.py" in test["name"] and "overlap" in test and precision_of(test["name"]) == precision
    ]
    worst = max(test["score_loss"] for test in measured), min(test["overlap"] for test in measured)
    stated = re.search(rf"\| {re.escape(plans)} \| (0\.\d+) \| (0\.\d+) \|", page)
    assert stated is not None
    digits = [len(text) - len("0.") for text in stated.groups()]
    assert [float(text) for text in stated.groups()] == [round(*each) for each in zip(worst, digits, strict=True)]


def test_the_run_is_the_one_that_is_described(outcome: dict[str, Any], page: str) -> None:
    count = sum(outcome[kind] for kind in ("passed", "failed", "skipped"))
    assert len(outcome["tests"]) == count
    told = page.partition("`gpu-tests.json` is the outcome of")[2]
    assert f"commit {outcome['commit'][:7]}," in told[:300]
    assert f"Of {count} tests {outcome['passed']} passed and {outcome['skipped']} were skipped" in told[:300]
