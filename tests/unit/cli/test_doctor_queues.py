"""`pinstream doctor` on limits with which Triton's batcher gives a model less work than it can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.queues import check_queues
from pinstream_cli.triton.repository import read_model
from tests.unit.cli.test_doctor import ONE_LINE, report

LIMIT = "dynamic_batching { default_queue_policy { max_queue_size: 64 } }"
POLICY = "default_queue_policy { default_timeout_microseconds: 1000000 }"
TIMED = f"dynamic_batching {{ {POLICY} }}"
OF_A_LEVEL = "dynamic_batching { priority_levels: 2 priority_queue_policy { key: 2 value { max_queue_size: 8 } } }"
DELAYED = f"dynamic_batching {{ {POLICY} max_queue_delay_microseconds: 100 }}"
TWO = "instance_group [ { count: 2 } ]"


def found(directory: Path, config: str, gpus: int = 0) -> list[str]:
    """What is said of a model with this configuration."""
    (directory / "config.pbtxt").write_text(ONE_LINE + config)
    checks: list[Check] = list(check_queues("model", read_model(directory), gpus))
    assert all(check.status == "WARN" and check.remedy for check in checks)
    return [check.found for check in checks]


@pytest.mark.parametrize("limit", [LIMIT, TIMED, OF_A_LEVEL], ids=["number", "time", "of a level"])
@pytest.mark.parametrize(
    ("group", "gpus", "told"),
    [
        ("", 0, True),
        ("instance_group [ { kind: KIND_CPU } ]", 2, True),
        ("instance_group [ { count: 1 }, { count: 2 passive: true } ]", 0, True),
        ("instance_group [ { count: 1 gpus: 1 } ]", 2, True),
        (TWO, 0, False),
        ("instance_group [ { count: 1 }, { count: 1 } ]", 0, False),
        ("instance_group [ { count: 1 } ]", 2, False),
        ("", 2, False),
        ("instance_group [ { kind: KIND_GPU } ]", 1, True),
        ("instance_group [ { kind: KIND_GPU } ]", 2, False),
        ("instance_group [ { kind: KIND_MODEL } ]", 2, True),
    ],
)
def test_one_instance_with_a_limit(tmp_path: Path, limit: str, group: str, gpus: int, told: bool) -> None:
    words = found(tmp_path, limit + group, gpus)
    assert len(words) == told
    assert all("one instance" in word for word in words)


@pytest.mark.parametrize("config", ["", "dynamic_batching { }", DELAYED.replace(POLICY, "")])
def test_without_limits_nothing_is_said(tmp_path: Path, config: str) -> None:
    assert found(tmp_path, config) == []


@pytest.mark.parametrize(
    ("other", "gpus", "told"),
    [
        ('backend: "onnxruntime"', 0, False),
        ('backend: "onnxruntime" instance_group [ { kind: KIND_CPU } ]', 1, False),
        ('backend: "onnxruntime" instance_group [ { count: 1 } ]', 0, True),
        ('backend: "onnxruntime"', 1, True),
        ('platform: "ensemble"', 0, False),
    ],
)
def test_others_have_two_by_themselves_or_none_at_all(tmp_path: Path, other: str, gpus: int, told: bool) -> None:
    (tmp_path / "config.pbtxt").write_text(f"{other} {LIMIT}")
    assert len(list(check_queues("model", read_model(tmp_path), gpus))) == told


def test_a_delay_beside_a_limit_in_time(tmp_path: Path) -> None:
    (words,) = found(tmp_path, DELAYED + TWO)
    assert "max_queue_delay_microseconds" in words


def test_it_is_part_of_the_table_and_no_fault(version: Path) -> None:
    (version.parent / "config.pbtxt").write_text(ONE_LINE + LIMIT)
    code, checks = report("--model-repository", version.parents[1])
    check = checks[f"model {version.parent.name}", "queue"]
    assert (code, check["status"]) == (0, "WARN")
    assert "count: 2" in check["remedy"]
