"""`pinstream doctor` on models that are odd in one way each; tests/server/test_doctor.py asks Triton about the same."""

from __future__ import annotations

import json

import pytest

from tests.odd_models import ODD_MODELS, Odd
from tests.unit.cli.test_doctor import run

Checks = list[dict[str, str]]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    repository = tmp_path_factory.mktemp("odd")
    for odd in ODD_MODELS:
        odd.write(repository)
    checks: Checks = json.loads(run("--json", "--model-repository", repository).stdout)["checks"]
    return checks


@pytest.mark.parametrize("odd", ODD_MODELS, ids=lambda odd: odd.name)
def test_what_triton_refuses_is_to_be_fixed_and_nothing_else(said: Checks, odd: Odd) -> None:
    faults = [check for check in said if check["area"] == f"model {odd.name}" and check["status"] == "FIX"]
    assert bool(faults) == bool(odd.words), faults
    assert all(fault["remedy"] for fault in faults)
    assert not odd.words or any(odd.words in fault["found"] for fault in faults), faults
