"""What is told of a search: each trial at once, all of them in a table, and what the written configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import click
from rich import box
from rich.table import Table

from pinstream_cli.benchmark import environment
from pinstream_cli.console import Console
from pinstream_cli.tuning.settings import AS_CONFIGURED, NOT_DELAYED, delay_to_start_from
from pinstream_cli.tuning.trial import Outcome, Trial

# What a terminal shows at least, and what there is where none is.
WIDTH = 80
UNPROVED = "As it was, it failed at the end: nothing was shown to be better."


def in_words(trial: Trial) -> str:
    """A line about a trial."""
    if trial.sample is None:
        return f"{trial}: {trial.problem}"
    sample = trial.sample
    rate = f"{sample.images_per_s:.1f} images/s"
    return f"{trial}: {rate} at concurrency {trial.concurrency}, p99 {sample.p99_ms:.1f} ms"


def show(outcome: Outcome, target: float | None, config: Any) -> None:
    """Print all that was tried, what is chosen, what was not tried, and on which machine."""
    show_trials(outcome.trials, target, outcome.best)
    click.echo(f"chosen: {outcome.best.settings}")
    if outcome.trials[0].problem:
        click.echo(UNPROVED)
    if outcome.untried:
        settings = " | ".join(map(str, outcome.untried))
        click.echo(f"not tried for want of time (a larger --limit has it): {settings}")
    if delay_to_start_from(config) is None:
        click.echo(f"queue delay not tried: {NOT_DELAYED}")
    click.echo(f"measured in {outcome.seconds:.0f} s: {_where()}")


def show_trials(trials: Sequence[Trial], target: float | None, best: Trial | None = None) -> None:
    """Print trials in their order, by the medians of how many windows; without a best, none is chosen."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("settings")
    for heading in ("conc.", "images/s", "p50 ms", "p99 ms", "windows"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for trial in trials:
        table.add_row(str(trial), *_figures(trial), _remark(trial, best, target))
    Console(width=WIDTH).print(table)
    if any(trial.base != AS_CONFIGURED for trial in trials):
        click.echo("+ is beside the best of the rows above.")


def _where() -> str:
    """This machine, and the checkout's commit where there is one."""
    machine, commit = environment.machine(), environment.commit()
    name = ", ".join(gpu.split(",")[0] for gpu in machine["gpus"]) or machine["cpu"]
    return f"{name}, {machine['cores']} cores" + (f"; commit {commit[:9]}" if commit != "unknown" else "")


def _figures(trial: Trial) -> tuple[str, ...]:
    if trial.sample is None:
        return ("",) * 5
    sample = trial.sample
    figures = (f"{value:.1f}" for value in (sample.images_per_s, sample.p50_ms, sample.p99_ms))
    return (str(trial.concurrency), *figures, str(trial.windows))


def _remark(trial: Trial, best: Trial | None, target: float | None) -> str:
    if trial.problem:
        return trial.problem
    if target is not None and not trial.within:
        return f"p99 over {target:g} ms"
    return "chosen" if trial is best else ""


def comment(outcome: Outcome, target: float | None) -> str:
    """What the written configuration says of itself."""
    best = outcome.best
    lines = [
        f"Tuned by `pinstream tune` on {date.today().isoformat()} in {outcome.seconds:.0f} s: {_where()}.",
        _finding(outcome),
    ]
    if best.sample is not None:
        lines.append(
            f"{best.sample.images_per_s:.0f} images/s at concurrency {best.concurrency}, "
            f"p99 {best.sample.p99_ms:.1f} ms"
            + (f" (target {target:g} ms)" if target is not None else "")
            + (f", {outcome.gain:.2f} times what it was" if outcome.gain != 1 else "")
        )
    if target is not None and not best.within and not best.problem:
        lines.append(f"No settings keep p99 within {target:g} ms; these come closest.")
    return "\n".join(lines)


def _finding(outcome: Outcome) -> str:
    if outcome.best is not outcome.trials[0]:
        return str(outcome.best.settings)
    return UNPROVED if outcome.best.problem else "Nothing that was tried is better than it was."
