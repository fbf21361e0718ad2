"""Tuning: how the best settings are found, with windows that are spoilt among them, and in the time there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.tuning.budget import Budget
from pinstream_cli.tuning.search import Search
from pinstream_cli.tuning.settings import Settings
from pinstream_cli.tuning.trial import CannotLoad, Outcome, Trial

Steps = Sequence[Sequence[Mapping[str, Any]]]
INSTANCES: Steps = [[{"instances": count} for count in (1, 2, 4, 8)]]
CONCURRENCIES = (1, 4, 16, 64)


class Server:
    """A model of a server: a rate for each number of instances, and a latency that grows with concurrency.

    Args:
        rates: Images a second with so many instances, from 16 requests under way on.
        spoilt: Windows that something disturbs: in the order of all, from 0.
    """

    def __init__(self, rates: Mapping[int | None, float], spoilt: Sequence[int] = ()) -> None:
        self._rates = rates
        self._spoilt = spoilt
        self.loaded: list[Settings] = []
        self.warmed: list[int] = []
        self.measured: list[int] = []

    def load(self, settings: Settings, concurrency: int) -> None:
        if settings.instances not in self._rates:
            raise CannotLoad("out of memory")
        self.loaded.append(settings)
        self.warmed.append(concurrency)

    def measure(self, concurrency: int) -> Sample:
        most = self._rates[self.loaded[-1].instances]
        rate = most * min(1.0, concurrency / 16)
        if len(self.measured) in self._spoilt:
            rate /= 10
        self.measured.append(concurrency)
        return Sample(rate, concurrency / rate * 1e3, 2 * concurrency / rate * 1e3)


def tuned(server: Server, target_ms: float | None = None, steps: Steps = INSTANCES) -> Outcome:
    search = Search(server.load, server.measure, CONCURRENCIES, target_ms)
    search.begin()
    return search.run(steps)


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

    with pytest.raises(KeyboardInterrupt):
        Search(server.load, server.measure, CONCURRENCIES, None, tried=stop_at_two).run(INSTANCES)
    assert told == [None, 1, 2]


@pytest.mark.parametrize("spoilt", range(20))
def test_no_single_window_decides(spoilt: int) -> None:
    """Not one that misses the target, nor one far behind, whether of what was there or of what is tried."""
    # At 16 under way p99 is 320 ms of 100 a second, 160 of 200; at 64 it is beyond the target.
    outcome = tuned(Server({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 110.0}, [spoilt]), target_ms=400.0)
    assert outcome.best.settings == Settings(instances=2)
    assert {trial.concurrency for trial in outcome.trials} == {16}
    assert outcome.gain == pytest.approx(2.0)


def test_windows_that_agree_are_two_and_others_three() -> None:
    quiet, disturbed = Server({None: 100.0}), Server({None: 100.0}, [2])
    for server in (quiet, disturbed):
        outcome = tuned(server, steps=[])
        assert outcome.best.sample is not None
        assert outcome.best.sample.images_per_s == pytest.approx(100.0)
    assert quiet.measured[:6] == [1, 1, 4, 4, 16, 16]
    assert disturbed.measured[:7] == [1, 1, 4, 4, 4, 16, 16]


def test_what_was_there_is_looked_at_again_where_the_best_is_best_at_another_concurrency() -> None:
    """It was measured in the first minute, which may have been a bad one, and all is compared with it."""
    # With one under way, where it misses the target by both windows.
    server = Server({None: 100.0, 1: 90.0, 2: 110.0, 4: 95.0, 8: 95.0}, spoilt=range(2))
    outcome = tuned(server, target_ms=400.0)
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.trials[0].concurrency == 16
    assert outcome.gain == pytest.approx(1.1)


def test_a_bad_minute_is_made_up_for_at_the_end() -> None:
    """All windows of the best are spoilt in the search; as those of what was there are not, it seemed far behind."""
    server = Server({None: 100.0, 2: 200.0}, spoilt=range(8, 12))
    outcome = tuned(server, steps=[[{"instances": 2}]])
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.gain == pytest.approx(2.0)


def test_what_misses_the_target_does_not_meet_what_keeps_it_at_the_end() -> None:
    server = Server({None: 100.0, 1: 10.0})
    tuned(server, target_ms=400.0, steps=[[{"instances": 1}]])
    assert [settings.instances for settings in server.loaded] == [None, None, 1]


def test_each_setting_is_measured_where_the_best_was_and_one_step_on() -> None:
    server = Server({None: 100.0, 1: 90.0})
    tuned(server, steps=[[{"instances": 1}]])
    # Up to where two in a row gain nothing; there is none after 64.
    assert server.measured[:12] == [1, 1, 4, 4, 16, 16, 64, 64, 16, 16, 64, 64]


class Queueing(Server):
    """Of less under way, less waits: with a quarter of 16 it takes half as long, at half the rate."""

    def measure(self, concurrency: int) -> Sample:
        self.measured.append(concurrency)
        rate = self._rates[self.loaded[-1].instances] * min(1.0, concurrency / 16) ** 0.5
        return Sample(rate, concurrency / rate * 1e3, 2 * concurrency / rate * 1e3)


def test_a_setting_that_misses_the_target_there_is_measured_with_less_under_way() -> None:
    server = Queueing({None: 100.0, 1: 50.0})
    outcome = tuned(server, target_ms=320.0, steps=[[{"instances": 1}]])
    assert [(trial.concurrency, trial.within) for trial in outcome.trials] == [(16, True), (4, True)]
    assert server.measured[8:12] == [16, 16, 4, 4]


def test_a_model_is_warmed_up_with_as_many_under_way_as_it_is_measured_with() -> None:
    server = Server({None: 100.0, 2: 200.0})
    tuned(server, steps=[[{"instances": 2}]])
    # Before it is known how many are best, with all; then with one step more than the best; at the end with the best.
    assert server.warmed[:3] == [64, 4, 64]
    assert set(server.warmed[3:]) == {16}


def test_the_final_windows_take_turns_with_as_few_loads_as_can_be() -> None:
    server = Server({None: 100.0, 2: 200.0})
    tuned(server, steps=[[{"instances": 2}]])
    # After the search, of which the last was the best: first and best, best and first, first and best.
    final = [settings.instances for settings in server.loaded[3:]]
    assert final == [None, 2, 2, None, None, 2]


class Failing(Server):
    """Fails with some instances once the search is over and the final windows have begun."""

    def __init__(self, rates: Mapping[int | None, float], instances: int | None, error: Exception) -> None:
        super().__init__(rates)
        self._failing = instances
        self._error = error
        self.over = False

    def load(self, settings: Settings, concurrency: int) -> None:
        if self.over and settings.instances == self._failing and isinstance(self._error, CannotLoad):
            raise self._error
        super().load(settings, concurrency)

    def measure(self, concurrency: int) -> Sample:
        if self.over and self.loaded[-1].instances == self._failing:
            raise self._error
        return super().measure(concurrency)

    def tuned(self) -> Outcome:
        def is_last(trial: Trial) -> None:
            self.over = trial.settings == Settings(instances=8)

        return Search(self.load, self.measure, CONCURRENCIES, None, tried=is_last).run(INSTANCES)


FAILURES = (CannotLoad("out of memory"), CommandError("perf_analyzer failed with code 99"))


@pytest.mark.parametrize("error", FAILURES)
def test_where_the_best_fails_at_the_end_the_next_best_has_its_turn(error: Exception) -> None:
    outcome = Failing({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 110.0}, 2, error).tuned()
    assert outcome.best.settings == Settings(instances=4)
    assert outcome.gain == pytest.approx(1.5)
    (failed,) = (trial for trial in outcome.trials if trial.problem)
    assert failed.settings == Settings(instances=2)
    assert failed.problem.startswith("failed at the end: ")
    assert failed.problem.endswith(str(error))


@pytest.mark.parametrize("error", FAILURES)
def test_where_what_was_there_fails_at_the_end_it_stays(error: Exception) -> None:
    server = Failing({None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 110.0}, None, error)
    outcome = server.tuned()
    assert outcome.best is outcome.trials[0]
    assert str(error) in outcome.best.problem
    assert outcome.gain == 1
    assert server.loaded[-1].instances in (None, 8), "nothing else has its turn"


def test_a_server_that_cannot_unload_ends_no_search() -> None:
    class Stuck(Server):
        def load(self, settings: Settings, concurrency: int) -> None:
            if settings.instances == 4:
                raise CommandError("it is still UNLOADING")
            super().load(settings, concurrency)

    outcome = tuned(Stuck({None: 100.0, 1: 90.0, 2: 200.0, 4: 300.0, 8: 110.0}))
    assert outcome.best.settings == Settings(instances=2)
    assert [trial.problem for trial in outcome.trials] == ["", "", "", "it is still UNLOADING", ""]


class Refusing(Server):
    """Refuses all requests of some settings, and of all others where more than 16 are under way."""

    def measure(self, concurrency: int) -> Sample:
        if self.loaded[-1].instances == 4 or concurrency > 16:
            raise CommandError("Exceeds maximum queue size")
        return super().measure(concurrency)


def test_refused_requests_end_neither_the_search_nor_what_was_measured_before_them() -> None:
    outcome = tuned(Refusing({None: 100.0, 1: 90.0, 2: 200.0, 4: 300.0, 8: 150.0}))
    assert (outcome.best.settings, outcome.best.concurrency) == (Settings(instances=2), 16)
    assert [trial.problem for trial in outcome.trials] == ["", "", "", "Exceeds maximum queue size", ""]


def test_where_all_requests_are_refused_the_search_ends() -> None:
    def refuse(concurrency: int) -> Sample:
        raise CommandError("Exceeds maximum queue size")

    with pytest.raises(CommandError, match="Exceeds"):
        Search(Server({None: 1.0}).load, refuse, CONCURRENCIES, None).run([])


class Uneven(Server):
    """A model whose throughput at each concurrency is given."""

    def __init__(self, rates: dict[int, float]) -> None:
        super().__init__({None: 1.0})
        self._at = rates

    def measure(self, concurrency: int) -> Sample:
        self.measured.append(concurrency)
        return Sample(self._at[concurrency], 1.0, 2.0)


def test_a_single_concurrency_that_gains_nothing_does_not_end_the_climb() -> None:
    uneven = Uneven({1: 100.0, 4: 300.0, 16: 300.0, 64: 400.0, 128: 401.0, 256: 402.0, 512: 900.0})
    outcome = Search(uneven.load, uneven.measure, (1, 4, 16, 64, 128, 256, 512), None).run([])
    assert outcome.best.concurrency == 256
    assert sorted(set(uneven.measured)) == [1, 4, 16, 64, 128, 256], "but two in a row do"


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


class Lucky:
    """A model whose p99 with some settings is another after the first windows of them."""

    def __init__(self, rates: dict[int | None, float], p99_ms: dict[int | None, tuple[float, float]]) -> None:
        self._rates = rates
        self._p99_ms = p99_ms
        self._loaded: int | None = None
        self._measured: list[int | None] = []

    def load(self, settings: Settings, concurrency: int) -> None:
        self._loaded = settings.instances

    def measure(self, concurrency: int) -> Sample:
        p99_ms = self._p99_ms[self._loaded][self._measured.count(self._loaded) >= 2]
        self._measured.append(self._loaded)
        return Sample(self._rates[self._loaded], p99_ms / 2, p99_ms)

    def tuned(self, target_ms: float) -> Outcome:
        step = [{"instances": count} for count in self._rates if count is not None]
        return Search(self.load, self.measure, (8,), target_ms).run([step])


def test_lucky_windows_do_not_meet_the_target() -> None:
    outcome = Lucky({None: 100.0, 4: 130.0}, {None: (20.0, 21.0), 4: (45.0, 400.0)}).tuned(50.0)
    assert outcome.best.settings == Settings()
    first, lucky = outcome.trials
    assert first.sample is not None
    assert first.sample.p99_ms == 21.0
    assert lucky.sample is not None
    assert lucky.sample.p99_ms == 400.0
    assert not lucky.within


def test_lucky_windows_do_not_meet_the_target_where_nothing_else_does() -> None:
    outcome = Lucky({None: 100.0, 4: 130.0}, {None: (90.0, 90.0), 4: (45.0, 400.0)}).tuned(50.0)
    assert outcome.best.settings == Settings()
    assert not outcome.best.within


def test_the_next_best_has_its_turn_where_the_best_misses_the_target() -> None:
    p99_ms = {None: (20.0, 20.0), 2: (30.0, 31.0), 4: (45.0, 400.0)}
    outcome = Lucky({None: 100.0, 2: 120.0, 4: 130.0}, p99_ms).tuned(50.0)
    assert outcome.best.settings == Settings(instances=2)
    assert outcome.best.sample is not None
    assert outcome.best.sample.p99_ms == 31.0
    assert outcome.best in outcome.trials


LOAD_S, WINDOW_S = 10.0, 2.0


class Timed(Server):
    """A server whose loads and windows take time, by a clock of its own."""

    def __init__(self, rates: Mapping[int | None, float]) -> None:
        super().__init__(rates)
        self.clock = 0.0

    def load(self, settings: Settings, concurrency: int) -> None:
        self.clock += LOAD_S * (settings not in self.loaded[-1:])
        super().load(settings, concurrency)

    def measure(self, concurrency: int) -> Sample:
        self.clock += WINDOW_S
        return super().measure(concurrency)

    def tuned(self, limit_s: float) -> Outcome:
        budget = Budget(limit_s, lambda: self.clock)
        steps = [*INSTANCES, [{"slots": slots} for slots in (2, 3, 4, 6)]]
        return Search(self.load, self.measure, (1, 16, 64), None, budget).run(steps)


RATES = {None: 100.0, 1: 90.0, 2: 200.0, 4: 150.0, 8: 150.0}


def test_all_is_tried_where_there_is_time() -> None:
    outcome = Timed(RATES).tuned(400.0)
    assert (outcome.untried, len(outcome.trials)) == ((), 9)


@pytest.mark.parametrize("limit_s", [100.0, 130.0, 160.0, 190.0, 220.0])
def test_a_search_and_its_end_keep_within_the_limit(limit_s: float) -> None:
    server = Timed(RATES)
    outcome = server.tuned(limit_s)
    assert server.clock <= limit_s
    assert len(outcome.trials) + len(outcome.untried) == 9


def test_every_setting_has_its_part_of_the_time() -> None:
    # 22 s for what was there, 62 for the end: of the others 50 for each of the two, three trials of 18.
    outcome = Timed(RATES).tuned(184.0)
    tried = [str(trial) for trial in outcome.trials]
    assert tried == ["as configured", "instances 1", "instances 2", "instances 4", "+ SLOTS 2", "+ SLOTS 3"]
    assert [str(trial) for trial in outcome.untried] == ["instances 8", "+ SLOTS 4", "+ SLOTS 6"]
    assert outcome.trials[-1].settings == Settings(instances=2, slots=3)


def test_windows_that_waited_for_quiet_do_not_take_the_time_of_the_rest() -> None:
    clock = [0.0]
    budget = Budget(100.0, lambda: clock[0])
    for seconds in (2.0, 30.0, 2.0):
        with budget.measuring():
            clock[0] += seconds
    # Sixteen windows of 2 s are to come.
    assert not budget.spent()
