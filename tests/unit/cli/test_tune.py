"""Tuning: what is tried, how the best is found, and the configuration that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from pinstream.options import Options
from pinstream.tensors import BatchSizes, ModelSpec, TensorSpec
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import sizing
from pinstream_cli.tune import show
from pinstream_cli.tuning.budget import Budget
from pinstream_cli.tuning.model import find, write
from pinstream_cli.tuning.search import CannotLoad, Outcome, Trial, search
from pinstream_cli.tuning.settings import Settings, delay_to_start_from, steps

PLAN = ModelSpec(
    (TensorSpec("images", "UINT8", (64, 64, 3)),), (TensorSpec("out", "FP32", (6,)),), BatchSizes((1, 4, 8, 16))
)


class Server:
    """A model of a server: a rate for each number of instances, and a latency that grows with concurrency."""

    def __init__(self, rates: dict[int | None, float]) -> None:
        self._rates = rates
        self.loaded: list[Settings] = []

    def load(self, settings: Settings) -> None:
        if settings.instances not in self._rates:
            raise CannotLoad("out of memory")
        self.loaded.append(settings)

    def measure(self, concurrency: int) -> Sample:
        most = self._rates[self.loaded[-1].instances]
        rate = most * min(1.0, concurrency / 16)
        return Sample(rate, concurrency / rate * 1e3, 2 * concurrency / rate * 1e3)


def tuned(server: Server, target_ms: float | None = None) -> Outcome:
    step = [{"instances": count} for count in (1, 2, 4, 8)]
    return search(server.load, server.measure, [step], (1, 4, 16, 64), target_ms)


def test_the_fastest_is_found_and_a_failure_is_told() -> None:
    outcome = tuned(Server({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0}))
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.best.concurrency == 16  # more gives no more
    assert outcome.gain == pytest.approx(2.0)
    assert [trial.problem for trial in outcome.trials] == ["", "", "", "", "does not load: out of memory"]


def test_every_trial_is_told_when_it_is_done() -> None:
    """So that somebody who stops the search has what it had found."""
    server, told = Server({None: 100.0, 1: 90.0, 2: 200.0}), []

    def stop_at_two(trial: Trial) -> None:
        told.append(trial.settings.instances)
        if trial.settings.instances == 2:
            raise KeyboardInterrupt

    step = [{"instances": count} for count in (1, 2, 4)]
    with pytest.raises(KeyboardInterrupt):
        search(server.load, server.measure, [step], (1, 4), None, tried=stop_at_two)
    assert told == [None, 1, 2]


def test_a_search_leaves_time_for_its_final_windows() -> None:
    clock = [0.0]
    budget = Budget(100.0, lambda: clock[0])
    with budget.loading():
        clock[0] += 10.0
    with budget.measuring():
        clock[0] += 2.0
    # Four loads of 10 s and six windows of 2 s are to come.
    clock[0] = 47.0
    assert not budget.spent()
    clock[0] = 49.0
    assert budget.spent()


def test_every_setting_has_its_part_of_the_time_and_what_it_is_too_short_for_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = [0.0]
    budget = Budget(220.0, lambda: clock[0])
    server = Server({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 150.0})

    def load(settings: Settings) -> None:
        with budget.loading():
            clock[0] += 10.0 * (settings not in server.loaded[-1:])
        server.load(settings)

    parts = [[{"instances": count} for count in (1, 2, 4, 8)], [{"slots": slots} for slots in (2, 3, 4, 6)]]
    outcome = search(load, server.measure, parts, (16,), None, budget.spent, begin=budget.begin)
    assert (outcome.untried, len(outcome.trials)) == ((), 9)
    clock[0] = 0.0
    # 10 s for what was there, 40 for the final windows: of the others 20 for each of the two, two trials.
    budget = Budget(90.0, lambda: clock[0])
    server.loaded.clear()
    outcome = search(load, server.measure, parts, (16,), None, budget.spent, begin=budget.begin)
    tried = [str(trial.settings) for trial in outcome.trials]
    assert tried == ["as configured", "instances 1", "instances 2", "instances 2; SLOTS 2", "instances 2; SLOTS 3"]
    assert clock[0] <= 90.0
    show(outcome, None, model_config_pb2.ModelConfig())
    told = capsys.readouterr().out
    assert (
        "not tried for want of time (a larger --limit has it): instances 4 | instances 8 | instances 2; SLOTS 4" in told
    )


def test_the_table_tells_medians_from_single_windows(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = tuned(Server({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 150.0}))
    show(outcome, None, model_config_pb2.ModelConfig())
    lines = {line.strip().split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["as configured"][-1] == "3"
    assert lines["instances 2"][-2:] == ["3", "chosen"]
    assert lines["instances 4"][-1] == "1"


def test_the_final_windows_take_turns_with_as_few_loads_as_can_be() -> None:
    server = Server({None: 100.0, 2: 200.0})
    search(server.load, server.measure, [[{"instances": 2}]], (16,), None)
    # After the search, of which the last was the best: first and best, best and first, first and best.
    final = [settings.instances for settings in server.loaded[2:]]
    assert final == [None, 2, 2, None, None, 2]


class Refusing(Server):
    """Refuses all requests of some settings, and of all others where more than 16 are under way."""

    def measure(self, concurrency: int) -> Sample:
        if self.loaded[-1].instances == 4 or concurrency > 16:
            raise CommandError("Exceeds maximum queue size")
        return super().measure(concurrency)

    def measure_nothing(self, concurrency: int) -> Sample:
        raise CommandError("Exceeds maximum queue size")


def test_refused_requests_end_neither_the_search_nor_what_was_measured_before_them() -> None:
    outcome = tuned(Refusing({None: 100.0, 1: 90.0, 2: 200.0, 4: 300.0, 8: 150.0}))
    assert (outcome.best.settings, outcome.best.concurrency) == (Settings(instances=2), 16)
    assert [trial.problem for trial in outcome.trials] == ["", "", "", "Exceeds maximum queue size", ""]
    refusing = Refusing({None: 1.0})
    with pytest.raises(CommandError, match="Exceeds"):
        search(refusing.load, refusing.measure_nothing, [], (1, 4), None)


class Uneven:
    """A model whose throughput at each concurrency is given."""

    def __init__(self, rates: dict[int, float]) -> None:
        self._rates = rates
        self.measured: list[int] = []

    def load(self, settings: Settings) -> None:
        pass

    def measure(self, concurrency: int) -> Sample:
        self.measured.append(concurrency)
        return Sample(self._rates[concurrency], 1.0, 2.0)


def test_a_single_concurrency_that_gains_nothing_does_not_end_the_climb() -> None:
    uneven = Uneven({1: 100.0, 4: 300.0, 16: 300.0, 64: 400.0, 128: 401.0, 256: 402.0, 512: 900.0})
    outcome = search(uneven.load, uneven.measure, [], (1, 4, 16, 64, 128, 256, 512), None)
    assert outcome.best.concurrency == 256
    assert uneven.measured == [1, 4, 16, 64, 128, 256], "but two in a row do"


def test_a_gain_that_is_none_changes_nothing() -> None:
    outcome = tuned(Server({None: 100.0, 1: 101.0, 2: 100.5, 4: 90.0, 8: 1.0}))
    assert outcome.best.settings == Settings()
    assert outcome.gain == 1


def test_the_target_limits_concurrency() -> None:
    # At 16 under way p99 is 320 ms, at 4 it is the same: 4 / 25 a second.
    outcome = tuned(Server({None: 100.0, 1: 200.0, 2: 400.0, 4: 300.0, 8: 300.0}), target_ms=90.0)
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.best.within
    assert outcome.best.sample is not None
    assert outcome.best.sample.p99_ms <= 90


def test_a_target_that_nothing_meets_is_said_and_approached() -> None:
    outcome = tuned(Server({None: 100.0, 1: 200.0, 2: 50.0, 4: 50.0, 8: 50.0}), target_ms=1.0)
    assert not outcome.best.within
    assert outcome.best.settings == Settings(instances=1)


class Noisy:
    """A model whose first window of some settings tells another p99 than those that follow."""

    def __init__(self, rates: dict[int | None, float], p99_ms: dict[int | None, tuple[float, float]]) -> None:
        self._rates = rates
        self._p99_ms = p99_ms
        self._loaded: int | None = None
        self._measured: set[int | None] = set()

    def load(self, settings: Settings) -> None:
        self._loaded = settings.instances

    def measure(self, concurrency: int) -> Sample:
        p99_ms = self._p99_ms[self._loaded][self._loaded in self._measured]
        self._measured.add(self._loaded)
        return Sample(self._rates[self._loaded], p99_ms / 2, p99_ms)

    def tuned(self, target_ms: float) -> Outcome:
        step = [{"instances": count} for count in self._rates if count is not None]
        return search(self.load, self.measure, [step], (8,), target_ms)


def test_a_lucky_window_does_not_meet_the_target() -> None:
    outcome = Noisy({None: 100.0, 4: 130.0}, {None: (20.0, 21.0), 4: (45.0, 400.0)}).tuned(50.0)
    assert outcome.best.settings == Settings()
    first, lucky = outcome.trials
    assert first.sample is not None
    assert first.sample.p99_ms == 21.0
    assert lucky.sample is not None
    assert lucky.sample.p99_ms == 400.0
    assert not lucky.within


def test_a_lucky_window_does_not_meet_the_target_where_nothing_else_does() -> None:
    outcome = Noisy({None: 100.0, 4: 130.0}, {None: (90.0, 90.0), 4: (45.0, 400.0)}).tuned(50.0)
    assert outcome.best.settings == Settings()
    assert not outcome.best.within


def test_the_next_best_has_its_turn_where_the_best_misses_the_target() -> None:
    p99_ms = {None: (20.0, 20.0), 2: (30.0, 31.0), 4: (45.0, 400.0)}
    outcome = Noisy({None: 100.0, 2: 120.0, 4: 130.0}, p99_ms).tuned(50.0)
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.best.sample is not None
    assert outcome.best.sample.p99_ms == 31.0
    assert outcome.best in outcome.trials


def test_what_is_tried_on_a_gpu() -> None:
    tried = [change for step in steps(PLAN, Options(), on_gpu=True, cores=4) for change in step]
    assert {"instances": 4, "executions": 8} in tried
    assert not any(change.get("instances", 0) > 4 for change in tried)  # more than cores
    most = [change for step in steps(PLAN, Options(), on_gpu=True, cores=24) for change in step]
    assert most[0] == {"instances": 8, "executions": 4}, "what `serve` makes of the detector, before all else"
    assert {"instances": 16, "executions": 1} in most
    assert {"buckets": (1, 8, 16)} in tried
    assert not any("lanes" in change for change in tried)


def test_what_is_configured_is_not_tried_again() -> None:
    as_serve_makes_it = Options(instances=sizing.DETECTORS_ON_GPU, executions=sizing.EXECUTIONS_ON_GPU)
    shares, slots, delays, _ = steps(PLAN, as_serve_makes_it, on_gpu=True, cores=16)
    assert {"instances": 8, "executions": 4} not in shares
    assert {"instances": 4, "executions": 8} in shares
    assert {"slots": 3} not in slots, "which is what it has without SLOTS"
    assert {"slots": 3} in steps(PLAN, Options(slots=4), on_gpu=True, cores=16)[1]
    assert delays == [{"delay_us": 500}, {"delay_us": 2000}]
    assert {"delay_us": 500} not in steps(PLAN, as_serve_makes_it, on_gpu=True, cores=16, delay_us=500)[2]


def test_what_serve_makes_of_a_model_on_a_cpu_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    config = text_format.Parse(sizing.plain_config(), model_config_pb2.ModelConfig())
    options = Options.from_model_config(json_format.MessageToDict(config, preserving_proto_field_name=True))
    assert steps(PLAN, options, on_gpu=False)[0] == [
        {"instances": 1, "lanes": 1, "threads": 2},
        {"instances": 1, "lanes": 2, "threads": 1},
    ]


@pytest.mark.parametrize("alone", [Options(share_engine="off"), Options(output_memory="gpu"), Options(gpu_inputs=True)])
def test_executions_are_tried_only_where_an_engine_may_be_shared(alone: Options) -> None:
    tried = [change for step in steps(PLAN, alone, on_gpu=True, cores=4) for change in step]
    assert {"instances": 4} in tried
    assert not any("executions" in change for change in tried)


def test_what_is_tried_on_a_cpu_shares_all_cores() -> None:
    shares, delays = steps(PLAN, Options(), on_gpu=False, cores=4)
    assert {"instances": 2, "lanes": 2, "threads": 1} in shares
    assert all(share["instances"] * share["lanes"] * share["threads"] == 4 for share in shares)
    assert {"delay_us": 500} in delays


def test_requests_that_may_wait_only_so_long_are_not_delayed() -> None:
    limited = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1000000 } }"
    delayed = "dynamic_batching { max_queue_delay_microseconds: 500 }"
    assert delay_to_start_from(model_config_pb2.ModelConfig()) == 0
    assert delay_to_start_from(text_format.Parse(delayed, model_config_pb2.ModelConfig())) == 500
    assert delay_to_start_from(text_format.Parse(limited, model_config_pb2.ModelConfig())) is None
    for on_gpu in (False, True):
        tried = [change for step in steps(PLAN, Options(), on_gpu, cores=4, delay_us=None) for change in step]
        assert tried
        assert not any("delay_us" in change for change in tried)


def test_it_is_said_that_no_queue_delay_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = tuned(Server({None: 100.0}))
    config = model_config_pb2.ModelConfig()
    show(outcome, None, config)
    assert "queue delay" not in capsys.readouterr().out
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 1
    show(outcome, None, config)
    assert "queue delay not tried: the configuration has default_timeout_microseconds" in capsys.readouterr().out


def test_buckets_that_were_chosen_stay() -> None:
    tried = [change for step in steps(PLAN, Options(buckets=(1, 4)), on_gpu=True, cores=4) for change in step]
    assert not any("buckets" in change for change in tried)


def test_a_configuration_keeps_what_is_not_tuned() -> None:
    text = 'backend: "pinstream" max_batch_size: 8 parameters { key: "PLUGINS" value { string_value: "a.so" } }'
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    changed = Settings(instances=3, delay_us=500, buckets=(1, 8), executions=4, slots=4).apply(config)
    assert changed.instance_group[0].count == 3
    assert changed.dynamic_batching.max_queue_delay_microseconds == 500
    parameters = {key: value.string_value for key, value in changed.parameters.items()}
    assert parameters == {"PLUGINS": "a.so", "BUCKETS": "1,8", "EXECUTIONS": "4", "SLOTS": "4"}
    assert not config.instance_group
    assert Settings().apply(config) == config


def test_only_models_of_ours_are_tuned(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(CommandError, match="has backend python"):
        find(tmp_path / "m", None, tmp_path)
    (tmp_path / "m" / "config.pbtxt").write_text(f"input {{ data_type: {2**63} }}")
    with pytest.raises(CommandError, match="is no model configuration"):
        find(tmp_path / "m", None, tmp_path)


def test_every_group_of_instances_is_tuned() -> None:
    text = "instance_group [ { kind: KIND_GPU gpus: [0] count: 1 }, { kind: KIND_GPU gpus: [1] count: 2 } ]"
    changed = Settings(instances=4).apply(text_format.Parse(text, model_config_pb2.ModelConfig()))
    assert [(list(group.gpus), group.count) for group in changed.instance_group] == [([0], 4), ([1], 4)]


def test_what_was_there_is_kept_beside_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text('# Ask Kim.\nbackend: "pinstream"\n')
    file.chmod(0o640)
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())

    assert write(config, "Tuned.", file) == tmp_path / "config.pbtxt.before"
    assert (tmp_path / "config.pbtxt.before").read_text() == '# Ask Kim.\nbackend: "pinstream"\n'
    assert file.read_text() == '# Tuned.\nbackend: "pinstream"\n'
    assert file.stat().st_mode & 0o777 == 0o640

    assert write(config, "Tuned again.", file) == tmp_path / "config.pbtxt.before-2"
    assert (tmp_path / "config.pbtxt.before").read_text().startswith("# Ask Kim.")
    assert write(config, "New.", tmp_path / "new" / "config.pbtxt") is None


def test_what_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").mkdir()
    with pytest.raises(CommandError, match="cannot be written"):
        write(model_config_pb2.ModelConfig(), "Tuned.", tmp_path / "config.pbtxt")
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]
