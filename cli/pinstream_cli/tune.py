"""`pinstream tune`: try a model's settings on this machine, and write the best into its config.pbtxt."""

from __future__ import annotations

import signal
import tempfile
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.status import Status
from rich.table import Table

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.batches import check_batches
from pinstream_cli.benchmark.destinations import check_file
from pinstream_cli.benchmark.options import integers_option, shape_option
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.console import Console, steps_of
from pinstream_cli.errors import CommandError
from pinstream_cli.options import FiniteRange
from pinstream_cli.tuning.budget import Budget
from pinstream_cli.tuning.model import CONFIG, Tuned, find, how_to_serve, write
from pinstream_cli.tuning.search import CannotLoad, Outcome, Trial, search
from pinstream_cli.tuning.server import Bench, bench
from pinstream_cli.tuning.settings import NOT_DELAYED, Settings, delay_to_start_from, steps

PATH = click.Path(path_type=Path)


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
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
def tune(
    model: Path,
    name: str | None,
    p99_ms: float | None,
    out: Path | None,
    concurrencies: tuple[int, ...],
    batch: int,
    shapes: dict[str, tuple[int, ...]],
    window: float,
    limit: float,
    dry_run: bool,
) -> None:
    """Try a model's settings on this machine and write the best into its config.pbtxt.

    MODEL is the model's directory in a model repository, or whatever `pinstream serve --model` takes; then what `serve`
    would make of it is where the search starts, and --out says where the config.pbtxt goes. Tried are instances, queue
    delay, and on a GPU executions, slots and batch sizes, on the CPU the shares of the cores, each in its part of
    --limit. What gains nothing beyond the spread is left as it was. The file that was there, with its comments, is kept
    beside the new one as config.pbtxt.before.
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="pinstream-tune-") as scratch:
            tuned = find(model, name, Path(scratch))
            file = out or tuned.file
            if file is None and not dry_run:
                raise CommandError(
                    f"{model} is no directory of a model repository; name the {CONFIG} to write, as in "
                    f"--out my_models/{tuned.name}/{CONFIG}"
                )
            check_file("--out", None if dry_run else file)
            check_batches(tuned.name, tuned.config, tuned.version, (batch,))
            waiting = alone(partial(console.print, soft_wrap=True))
            with waiting, console.status("starting Triton") as status, bench(tuned, console) as trying:
                trying.window_s, trying.batch, trying.shapes = window, batch, shapes
                outcome = _search(trying, tuned, concurrencies, p99_ms, Budget(limit), status)
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except CannotLoad as error:
        click.echo(f"error: {model} cannot be loaded as it is configured: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        raise SystemExit(130) from None
    show(outcome, p99_ms, tuned.config)
    comment = _comment(outcome, p99_ms)
    if dry_run or file is None:
        click.echo(comment)
    elif outcome.best is outcome.trials[0] and file == tuned.file:
        click.echo(f"{file} stays as it is.")
    else:
        _write(outcome.best.settings.apply(tuned.config), comment, file)
        if tuned.file is None:
            click.echo(how_to_serve(tuned, file))


def _write(config: Any, comment: str, file: Path) -> None:
    try:
        kept = write(config, comment, file)
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    click.echo(f"wrote {file}" + (f"; what was there, with its comments, is {kept.name}" if kept else ""))


def _search(
    trying: Bench,
    tuned: Tuned,
    concurrencies: tuple[int, ...],
    target: float | None,
    budget: Budget,
    status: Status,
) -> Outcome:
    def load(settings: Settings) -> None:
        steps_of(status)(f"{tuned.name}: {settings}")
        with budget.loading():
            trying.load(settings)

    def measure(concurrency: int) -> Sample:
        with budget.measuring():
            return trying.measure(concurrency)

    def tried(trial: Trial) -> None:
        # At once: whoever stops the search, or waits for it, sees what it has found so far.
        status.console.print(f"  {trial.settings}: {_in_words(trial)}")

    load(Settings())
    model = trying.model
    on_gpu = model.file.suffix != ".onnx"
    todo = steps(model.spec, model.options, on_gpu, delay_us=delay_to_start_from(tuned.config))
    return search(load, measure, todo, concurrencies, target, budget.spent, tried, budget.begin)


def _in_words(trial: Trial) -> str:
    if trial.sample is None:
        return trial.problem
    sample = trial.sample
    return f"{sample.images_per_s:.1f} images/s at concurrency {trial.concurrency}, p99 {sample.p99_ms:.1f} ms"


def show(outcome: Outcome, target: float | None, config: Any) -> None:
    """Print all that was tried, in its order, by the medians of how many windows, and what was not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("settings")
    for heading in ("conc.", "images/s", "p50 ms", "p99 ms", "windows"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for trial in outcome.trials:
        table.add_row(str(trial.settings), *_figures(trial), _remark(trial, outcome, target))
    Console(width=120).print(table)
    if outcome.untried:
        settings = " | ".join(map(str, outcome.untried))
        click.echo(f"not tried for want of time (a larger --limit has it): {settings}")
    if delay_to_start_from(config) is None:
        click.echo(f"queue delay not tried: {NOT_DELAYED}")


def _figures(trial: Trial) -> tuple[str, ...]:
    if trial.sample is None:
        return ("",) * 5
    sample = trial.sample
    figures = (f"{value:.1f}" for value in (sample.images_per_s, sample.p50_ms, sample.p99_ms))
    return (str(trial.concurrency), *figures, str(trial.windows))


def _remark(trial: Trial, outcome: Outcome, target: float | None) -> str:
    if trial.problem:
        return trial.problem
    if target is not None and not trial.within:
        return f"p99 over {target:g} ms"
    return "chosen" if trial is outcome.best else ""


def _comment(outcome: Outcome, target: float | None) -> str:
    """What the written configuration says of itself."""
    best, machine = outcome.best, environment.machine()
    where = ", ".join(gpu.split(",")[0] for gpu in machine["gpus"]) or machine["cpu"]
    lines = [
        f"Tuned by `pinstream tune` on {date.today().isoformat()}: {where}, {machine['cores']} cores.",
        f"{best.settings}" if best is not outcome.trials[0] else "Nothing that was tried is better than it was.",
    ]
    if best.sample is not None:
        lines.append(
            f"{best.sample.images_per_s:.0f} images/s at concurrency {best.concurrency}, "
            f"p99 {best.sample.p99_ms:.1f} ms"
            + (f" (target {target:g} ms)" if target is not None else "")
            + (f", {outcome.gain:.2f} times what it was" if outcome.gain != 1 else "")
        )
    if target is not None and not best.within:
        lines.append(f"No settings keep p99 within {target:g} ms; these come closest.")
    return "\n".join(lines)
