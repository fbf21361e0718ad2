"""The search: one thing after the other, and at the end the best against what was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.tuning.budget import Budget
from pinstream_cli.tuning.climb import best_concurrency
from pinstream_cli.tuning.final import confirmed
from pinstream_cli.tuning.settings import AS_CONFIGURED, Settings, with_changes
from pinstream_cli.tuning.trial import CannotLoad, LoadSettings, Measure, Outcome, Trial, score


def _nobody(trial: Trial) -> None:
    """Is told."""


@dataclass
class Search:
    """Looks for the settings that give the highest throughput.

    Attributes:
        load: Loads the model with some settings.
        measure: Measures one window of it.
        concurrencies: At which throughput is looked for, ascending.
        target_ms: What p99 may be at most; None for anything.
        budget: Its time.
        tried: Told of each trial when it is done.
        trials: All so far, that of the configuration as it is first.
    """

    load: LoadSettings
    measure: Measure
    concurrencies: Sequence[int]
    target_ms: float | None
    budget: Budget = field(default_factory=Budget)
    tried: Callable[[Trial], None] = _nobody
    trials: list[Trial] = field(init=False, default_factory=list)

    def begin(self) -> None:
        """Load the model as it is configured: what there is to try depends on what the server makes of that.

        It is warmed up with as many requests under way as there may be, since how many are best is not known yet.

        Raises:
            CannotLoad: The configuration as it is cannot be loaded.
            CommandError: The server does not do what it is told.
        """
        self._load(AS_CONFIGURED, self.concurrencies[-1])

    def run(self, steps: Sequence[Sequence[Mapping[str, Any]]]) -> Outcome:
        """Try, after `begin`, the settings of one step after the other; see settings.steps.

        Raises:
            CommandError: Nothing can be measured of the configuration as it is.
        """
        first = self._attempt(Trial(AS_CONFIGURED), None)
        if first.sample is None:
            raise CommandError(first.problem)
        self.trials.append(first)
        untried: list[Trial] = []
        for number, step in enumerate(steps):
            self.budget.begin(len(steps) - number)
            untried += self._step(step)
        self._look_again()
        outcome = confirmed(self.trials, self._load, self._measure, self.target_ms, self.budget.spent)
        return replace(outcome, untried=tuple(untried))

    @property
    def best(self) -> Trial:
        """Of those so far."""
        return max(self.trials, key=score)

    def _step(self, step: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Try changes to the best so far; gives those for which there is no time."""
        base, untried = self.best.settings, []
        for changes in step:
            trial = Trial(with_changes(base, changes), base)
            if any(one.settings == trial.settings for one in self.trials):
                continue
            if self.budget.spent():
                untried.append(trial)
            else:
                self.trials.append(self._attempt(trial, self.best.concurrency))
        return untried

    def _look_again(self) -> None:
        """See what was there before at the concurrency of the best, too, if it came off best at another one.

        All is compared with it, and it was measured minutes ago: what disturbed that must not decide.
        """
        first, best = self.trials[0], self.best
        if best.concurrency != first.concurrency:
            self.trials[0] = max(first, self._attempt(Trial(AS_CONFIGURED), best.concurrency), key=score)

    def _attempt(self, trial: Trial, concurrency: int | None) -> Trial:
        """Load and measure it, at a concurrency first; None for the least."""
        start = 0 if concurrency is None else self.concurrencies.index(concurrency)
        # The climb goes one up from where it starts, mostly: what is met there for the first time is to be warm, too.
        warm = min(start + 1, len(self.concurrencies) - 1)
        try:
            self._load(trial.settings, self.concurrencies[warm])
        except CannotLoad as error:
            trial = replace(trial, problem=f"does not load: {error}")
        except CommandError as error:
            trial = replace(trial, problem=str(error))
        else:
            trial = best_concurrency(trial, self.concurrencies, start, self._measure, self.target_ms)
        self.tried(trial)
        return trial

    def _load(self, settings: Settings, concurrency: int) -> None:
        with self.budget.loading():
            self.load(settings, concurrency)

    def _measure(self, concurrency: int) -> Sample:
        with self.budget.measuring():
            return self.measure(concurrency)
