"""What `pinstream tune` tells of a search."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tritonclient.grpc import model_config_pb2

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.tuning.report import WIDTH, comment, in_words, show, show_trials
from pinstream_cli.tuning.settings import Settings
from pinstream_cli.tuning.trial import Outcome, Trial

SHARES = Settings(instances=16, executions=1)
SLOTS = Settings(instances=16, executions=1, slots=4)
BUCKETS = Settings(instances=16, executions=1, slots=4, buckets=(1, 4, 8, 12, 16, 24, 32))
SAMPLE = Sample(2230.6, 6.9, 115.5)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cpu": "Xeon", "cores": 16, "gpus": ["NVIDIA H100 80GB HBM3, 580.1"]}
    monkeypatch.setattr(environment, "machine", lambda: machine)
    monkeypatch.setattr(environment, "commit", lambda: "0123456789abcdef-dirty")


def outcome(untried: tuple[Trial, ...] = ()) -> Outcome:
    trials = [
        Trial(Settings(), Settings(), 16, Sample(1719.2, 8.6, 27.5), True, windows=3),
        Trial(SHARES, Settings(), 16, Sample(2208.1, 6.9, 22.6), True, windows=2),
        Trial(SLOTS, SHARES, 128, SAMPLE, False, windows=2),
        Trial(BUCKETS, SLOTS, 16, Sample(2230.6, 6.9, 15.5), True, windows=3),
    ]
    return Outcome(trials, trials[-1], 1.3, untried, seconds=540.4)


def test_a_trial_names_what_it_changes_of_the_best_before() -> None:
    said = [in_words(trial) for trial in outcome().trials]
    assert said[1] == "instances 16; EXECUTIONS 1: 2208.1 images/s at concurrency 16, p99 22.6 ms"
    assert said[3] == "+ BUCKETS 1,4,8,12,16,24,32: 2230.6 images/s at concurrency 16, p99 15.5 ms"
    assert all(len(line) + len("  ") <= WIDTH for line in said)
    assert in_words(Trial(SLOTS, SHARES, problem="does not load: no")) == "+ SLOTS 4: does not load: no"


def test_the_table_tells_how_many_windows_and_all_settings_that_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome(), 50.0, model_config_pb2.ModelConfig())
    lines = capsys.readouterr().out.splitlines()
    rows = {line.strip().split("  ")[0]: line.split() for line in lines}
    assert rows["as configured"][-1] == "3"
    assert rows["+ SLOTS 4"][-5:] == ["2", "p99", "over", "50", "ms"]
    assert rows["+ BUCKETS"][-2:] == ["3", "chosen"]
    assert f"chosen: {BUCKETS}" in lines
    assert all(len(line.rstrip()) <= WIDTH for line in lines)
    assert str(BUCKETS) in comment(outcome(), 50.0)


def test_what_is_kept_of_it_says_where_and_when_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show(outcome(), None, model_config_pb2.ModelConfig())
    where = "NVIDIA H100 80GB HBM3, 16 cores; commit 012345678"
    assert capsys.readouterr().out.splitlines()[-1] == f"measured in 540 s: {where}"
    assert comment(outcome(), None).splitlines()[0].endswith(f" in 540 s: {where}.")
    # Installed, it is of no checkout.
    monkeypatch.setattr(environment, "commit", lambda: "unknown")
    assert "16 cores." in comment(outcome(), None).splitlines()[0]


def test_what_a_search_that_is_stopped_has_tried_is_shown_and_none_of_it_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_trials(outcome().trials[:2], None)
    told = capsys.readouterr().out
    assert "as configured" in told
    assert "2208.1" in told
    assert "chosen" not in told


def test_what_there_was_no_time_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    untried = Trial(Settings(instances=4)), Trial(SLOTS, SHARES)
    show(outcome(untried), None, model_config_pb2.ModelConfig())
    assert "not tried for want of time (a larger --limit has it): instances 4 | + SLOTS 4" in capsys.readouterr().out


def test_it_is_said_that_no_queue_delay_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    config = model_config_pb2.ModelConfig()
    show(outcome(), None, config)
    assert "queue delay" not in capsys.readouterr().out
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 1
    show(outcome(), None, config)
    assert "queue delay not tried: the configuration has default_timeout_microseconds" in capsys.readouterr().out


def test_it_is_said_that_what_was_there_stays_since_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    found = outcome()
    found.trials[0] = replace(found.trials[0], problem="failed at the end: no", within=False)
    found = replace(found, best=found.trials[0], gain=1.0)
    show(found, 50.0, model_config_pb2.ModelConfig())
    told = capsys.readouterr().out
    written = comment(found, 50.0)
    for text in (told, written):
        assert "As it was, it failed at the end: nothing was shown to be better." in text
    assert "failed at the end: no" in " ".join(told.split())
    assert "come closest" not in written
