"""Versions whose directories are gone: told of where they stay, and not where another one takes their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream_cli.triton.loads import Version
from pinstream_cli.triton.withdrawn import Withdrawn
from tests.unit.cli.test_triton_loads import LOADED, ONE, TWO, after, failed, loading, unloaded

THREE = Version("classifier", 3)
POLL = ["--model-control-mode=poll", "--repository-poll-secs=1"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for number in "123":
        (tmp_path / "classifier" / number).mkdir(parents=True)
    return tmp_path / "classifier"


@pytest.mark.parametrize(
    ("arguments", "patience", "then"),
    [
        (POLL, 11, ""),
        (POLL[:1], 25, ""),
        (["--model-control-mode", "explicit"], 10, " and load the model again"),
        ([], 10, " and start serve again"),
    ],
)
def test_what_stays_without_its_directory_is_told_once(
    model: Path, arguments: list[str], patience: float, then: str
) -> None:
    told: list[str] = []
    withdrawn = Withdrawn(after(loading(THREE), LOADED), [model.parent], arguments, told.append)
    withdrawn.look(0)
    (model / "3").rmdir()
    withdrawn.look(100)
    withdrawn.look(99.9 + patience)
    assert not told
    withdrawn.look(100 + patience)
    withdrawn.look(1000)
    assert told == [
        "version 3 of model 'classifier' is served from memory alone, and no more after a restart: "
        f"{model}/3 is not there any more; put it back, or another version in its place{then}"
    ]
    (model / "3").mkdir()
    withdrawn.look(2000)
    (model / "3").rmdir()
    for now in (3000, 4000):
        withdrawn.look(now)
    assert len(told) == 2


def test_what_would_not_load_in_its_place_is_named(model: Path) -> None:
    told: list[str] = []
    loads = after(loading(ONE), *failed(ONE), loading(TWO), *failed(TWO), loading(THREE), LOADED)
    withdrawn = Withdrawn(loads, [model.parent], POLL, told.append)
    withdrawn.look(0)
    (model / "3").rmdir()
    (model / "1").rmdir()
    for now in (1, 20):
        # Triton tries it again and again.
        loads.read(loading(TWO))
        withdrawn.look(now)
        for line in failed(TWO):
            loads.read(line)
    assert len(told) == 1
    assert told[0].endswith(
        "3 is not there any more; take away as well what Triton would not load in its place (2), or name a good "
        "version with version_policy { specific { versions: [ N ] } } in config.pbtxt"
    )


def test_a_version_whose_place_another_one_takes_is_not_told_of(model: Path) -> None:
    told: list[str] = []
    loads = after(loading(THREE), LOADED)
    withdrawn = Withdrawn(loads, [model.parent], POLL, told.append)
    withdrawn.look(0)
    (model / "3").rmdir()
    withdrawn.look(1)
    loads.read(loading(TWO))
    for now in (2, 100, 200):
        withdrawn.look(now)
    loads.read(LOADED)
    withdrawn.look(205)
    loads.read(unloaded(THREE))
    withdrawn.look(400)
    assert told == []
    # Loaded again, from elsewhere.
    for line in (loading(THREE), LOADED):
        loads.read(line)
    for now in (500, 600):
        withdrawn.look(now)
    assert told == []


def test_a_version_without_a_process_is_served_no_more_whatever_the_log_had_of_it(model: Path) -> None:
    told: list[str] = []
    alone = Withdrawn(after(loading(THREE), LOADED), [model.parent], POLL, told.append, lambda version: False)
    alone.look(0)
    (model / "3").rmdir()
    for now in (1, 1000):
        alone.look(now)
    assert not told
