"""`pinstream tune`: try a model's settings on this machine, and write the best into its config.pbtxt."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.status import Status

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.batches import check_batches
from pinstream_cli.benchmark.destinations import check_file
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.options import foreign_option, integers_option, shape_option
from pinstream_cli.console import Console, steps_of
from pinstream_cli.errors import CommandError
from pinstream_cli.options import FiniteRange
from pinstream_cli.tuning.budget import Budget
from pinstream_cli.tuning.model import CONFIG, Tuned, find, how_to_serve, write
from pinstream_cli.tuning.report import comment, in_words, show, show_trials
from pinstream_cli.tuning.search import Search
from pinstream_cli.tuning.server import Requests, bench
from pinstream_cli.tuning.settings import delay_to_start_from, steps
from pinstream_cli.tuning.trial import CannotLoad, Outcome, Trial

PATH = click.Path(path_type=Path)
# How often a window is measured that others disturb. A search has many, and none of them decides alone.
ATTEMPTS = 2
# Seconds to wait for quiet in all.
PATIENCE_S = 60.0
NEVER_QUIET_NOTE = "Others took more than {:.0%} of the CPU (--foreign) all along: windows were taken as they came."


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What to look for, and how, as the command line says it.

    Attributes:
        p99_ms: What p99 may be at most; None for anything.
        concurrencies: Requests under way at the same time, ascending.
        batch: Items of a request.
        shapes: Item shapes of inputs that have dynamic dimensions.
        window: Seconds of a window.
        foreign: Share of the CPU that others may take in one.
        limit: Seconds for all of it.
    """

    p99_ms: float | None
    concurrencies: tuple[int, ...]
    batch: int
    shapes: dict[str, tuple[int, ...]]
    window: float
    foreign: float
    limit: float


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--name", help="Take MODEL as a plain model of this name, YOLOX or not.")
@click.option("--p99-ms", type=FiniteRange(0, min_open=True), help="What p99 may be at most.  [default: anything]")
@click.option("--out", type=PATH, help="The config.pbtxt to write.  [default: the model directory's own]")
@integers_option("--concurrency", "concurrencies", "1,4,16,64,128,256", "Requests under way at the same time.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Items of a request.")
@shape_option
@click.option("--window", default=1.0, show_default=True, type=FiniteRange(0.3), help="Seconds of a window.")
@click.option("--limit", default=600.0, show_default=True, type=FiniteRange(1), help="Seconds to try things in.")
@foreign_option
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
def tune(model: Path, name: str | None, out: Path | None, dry_run: bool, **given: Any) -> None:
    """Try a model's settings on this machine and write the best into its config.pbtxt.

    MODEL is the model's directory in a model repository, or whatever `pinstream serve --model` takes; then what `serve`
    would make of it is where the search starts, and --out says where the config.pbtxt goes. Tried are instances, queue
    delay, and on a GPU executions, slots and batch sizes, on the CPU the shares of the cores, each in its part of
    --limit. What is at the end no more than 2 % better is left as it was. The file that was there, with its comments,
    is kept beside the new one as config.pbtxt.before.
    """
    wishes = Wishes(**given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _in_one_line(model), tempfile.TemporaryDirectory(prefix="pinstream-tune-") as scratch:
        tuned = find(model, name, Path(scratch))
        file = None if dry_run else _destination(model, tuned, out)
        check_batches(tuned.name, tuned.config, tuned.version, (wishes.batch,))
        outcome = _search(tuned, wishes, Console(stderr=True))
        click.echo(environment.command(["pinstream", *sys.argv[1:]]))
        show(outcome, wishes.p99_ms, tuned.config)
        _finish(outcome, comment(outcome, wishes.p99_ms), tuned, file)


@contextlib.contextmanager
def _in_one_line(model: Path) -> Iterator[None]:
    """What goes wrong meanwhile ends the command with a line that says so."""
    try:
        yield
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except CannotLoad as error:
        click.echo(f"error: {model} cannot be loaded as it is configured: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        raise SystemExit(130) from None


def _destination(model: Path, tuned: Tuned, out: Path | None) -> Path:
    """The config.pbtxt to write."""
    file = out or tuned.file
    if file is None:
        raise CommandError(
            f"{model} is no directory of a model repository; name the {CONFIG} to write, as in "
            f"--out my_models/{tuned.name}/{CONFIG}"
        )
    check_file("--out", file)
    return file


def _search(tuned: Tuned, wishes: Wishes, console: Console) -> Outcome:
    def tried(trial: Trial) -> None:
        # At once: whoever stops the search, or waits for it, sees what it has found so far.
        console.print(f"  {in_words(trial)}", soft_wrap=True)

    waiting = alone(partial(console.print, soft_wrap=True))
    with waiting, console.status("starting Triton") as status:
        began = time.monotonic()
        budget = Budget(wishes.limit)
        requests = Requests(wishes.batch, wishes.shapes)
        with bench(tuned, requests, _plan(wishes, budget, status), console) as trying:
            search = Search(trying.load, trying.measure, wishes.concurrencies, wishes.p99_ms, budget, tried)
            search.begin()
            model = trying.model
            on_gpu = model.file.suffix != ".onnx"
            to_try = steps(model.spec, model.options, on_gpu, delay_us=delay_to_start_from(tuned.config))
            try:
                outcome = search.run(to_try)
            except KeyboardInterrupt:
                status.stop()
                _show_what_there_is(search.trials, wishes)
                raise
            if trying.never_quiet:
                console.print(NEVER_QUIET_NOTE.format(wishes.foreign), soft_wrap=True)
            return replace(outcome, seconds=time.monotonic() - began)


def _show_what_there_is(trials: list[Trial], wishes: Wishes) -> None:
    """Of a search that is stopped: at once, since it may take long until the server has ended."""
    if trials:
        show_trials(trials, wishes.p99_ms)
        click.echo("Stopped before the end, so none of them is chosen, and nothing is written.")


def _plan(wishes: Wishes, budget: Budget, status: Status) -> Plan:
    return Plan(
        window_s=wishes.window,
        foreign_limit=wishes.foreign,
        attempts=ATTEMPTS,
        patience_s=PATIENCE_S,
        ends=budget.ends,
        progress=steps_of(status),
    )


def _finish(outcome: Outcome, text: str, tuned: Tuned, file: Path | None) -> None:
    """Write what was found, and say what has become of it; without a file it is shown."""
    if file is None:
        click.echo(text)
        return
    if outcome.best is outcome.trials[0] and file == tuned.file:
        click.echo(f"{file} stays as it is.")
        return
    kept = write(outcome.best.settings.apply(tuned.config), text, file)
    click.echo(f"wrote {file}" + (f"; what was there, with its comments, is {kept.name}" if kept else ""))
    if tuned.file is None:
        click.echo(how_to_serve(tuned, file))
