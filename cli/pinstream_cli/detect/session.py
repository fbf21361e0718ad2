"""A run of `pinstream detect` from what was asked for to its exit: resumed, interrupted or complete."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pinstream_cli.console import Console
from pinstream_cli.detect.annotate import Annotator
from pinstream_cli.detect.journal import Journal
from pinstream_cli.detect.progress import Bar
from pinstream_cli.detect.report import Ending, report
from pinstream_cli.detect.run import Run, failures, save
from pinstream_cli.detect.sources import Item, Source, count, items, resolve
from pinstream_cli.detect.timing import TimeSplit
from pinstream_cli.detect.video import Video
from pinstream_cli.detect.watch import Watch
from pinstream_client import Detector

# More images than this are counted by class instead of listed object by object.
_LISTED = 100


@dataclass(frozen=True)
class Wishes:
    """The command line.

    Attributes:
        model: Name of the ensemble.
        images: What to look at.
        watch: A directory to wait at for more, or None.
        out: Directory of annotated pictures and videos, or None.
        save: File of results, or None.
        format: What standard output gets; None chooses.
        thresholds: conf, iou and max_det.
        restart: Do not go on with an interrupted run.
        verbose: A line for each image.
    """

    model: str
    images: tuple[str, ...]
    watch: Path | None
    out: Path | None
    save: Path | None
    format: str | None
    thresholds: dict[str, Any]
    restart: bool
    verbose: bool


def detect_all(detector: Detector, wishes: Wishes) -> list[str]:
    """Does what was asked for.

    Returns:
        The lines that say what failed; none when nothing did.

    Raises:
        PinstreamError: The server is not there, or goes away.
        CommandError: Nothing to look at, or a result cannot be written.
        KeyboardInterrupt: Before all was done; what is endless ends with it and raises nothing.
    """
    sources: list[Source] = [] if wishes.watch is not None else resolve(wishes.images, wishes.out)
    annotator = None if wishes.out is None else Annotator(wishes.out, _files(sources))
    detector.check_ready()
    names = detector.class_names()  # a request of its own, which has no place in the time split
    journal = _journal(wishes, sources, names)
    done = set() if journal is None else journal.done
    left = [source for source in sources if not (isinstance(source, Item) and (source.name, source.stamp) in done)]
    printed = _format(wishes, sources)
    # On a terminal, lines that come one by one are progress enough.
    shown = not (printed in ("jsonl", "csv") and sys.stdout.isatty())
    total = None if wishes.watch is not None else count(sources)
    split, started = TimeSplit(detector), time.perf_counter()
    with Bar(Console(stderr=True), total, len(sources) - len(left), shown) as bar:
        out = report(printed, names)
        run = Run(detector, wishes.thresholds, out, annotator, journal, bar, wishes.verbose)
        if wishes.verbose:
            bar.say(f"model {detector.model} at {detector.address}, {len(names)} classes")
        with _kept_when_interrupted(run), _ended_by_ctrl_c(wishes, left):
            _work(run, wishes, left)
    seconds, timings = time.perf_counter() - started, split.until_now()
    written = _write(run, wishes, names)
    out.finish(Ending(str(detector.address), detector.model, seconds, run.sent, timings, written))
    return failures(run.failed, run.seen) if run.failed else []


def _work(run: Run, wishes: Wishes, left: Sequence[Source]) -> None:
    run.resume()
    if wishes.watch is not None:
        run.watch(Watch(wishes.watch, wishes.out, set() if run.journal is None else run.journal.done))
    for source in left:
        if isinstance(source, Video) and source.problem is not None:
            run.fail(source.name, source.problem)
    run.over(items(left))


def _journal(wishes: Wishes, sources: Sequence[Source], names: tuple[str, ...]) -> Journal | None:
    """Beside the file of results, else among the annotated pictures; none where nothing is written."""
    if wishes.save is not None:
        path = wishes.save.with_name(wishes.save.name + ".part")
    elif wishes.out is not None:
        path = wishes.out / ".pinstream-detect.part"
    else:
        return None
    wanted = {(source.name, source.stamp) for source in sources if isinstance(source, Item)}
    return Journal(
        path,
        {"model": wishes.model, **wishes.thresholds, "out": None if wishes.out is None else str(wishes.out)},
        names,
        restart=wishes.restart,
        wanted=None if wishes.watch is not None else wanted,
    )


@contextlib.contextmanager
def _kept_when_interrupted(run: Run) -> Iterator[None]:
    """Completes videos in any case, and says how to go on with a run that has not come to its end."""
    try:
        yield
    except BaseException:
        if run.journal is not None:
            run.journal.close()
            if run.journal.done:
                click.echo(f"{len(run.journal.done)} images are done: the same command goes on from there.", err=True)
        raise
    finally:
        if run.annotator is not None:
            run.annotator.close()


def _ended_by_ctrl_c(wishes: Wishes, sources: Sequence[Source]) -> contextlib.AbstractContextManager[None]:
    """A camera and a watched directory have no other end."""
    endless = wishes.watch is not None or any(isinstance(source, Video) and source.is_camera for source in sources)
    return contextlib.suppress(KeyboardInterrupt) if endless else contextlib.nullcontext()


def _write(run: Run, wishes: Wishes, names: tuple[str, ...]) -> tuple[str, ...]:
    """The file of results, out of the journal, which has then done its work; returns what was written."""
    if run.journal is None:
        return ()
    if wishes.save is not None:
        save(wishes.save, run.journal, names)
    if wishes.watch is not None:
        run.journal.close()  # a watch is never done: the next one goes on
    else:
        run.journal.remove()
    return () if wishes.save is None else (str(wishes.save),)


def _format(wishes: Wishes, sources: Sequence[Source]) -> str:
    if wishes.format is not None:
        return wishes.format
    many = len(sources) > _LISTED or any(isinstance(source, Video) for source in sources)
    return "summary" if many or wishes.save is not None or wishes.watch is not None else "table"


def _files(sources: Sequence[Source]) -> list[Path]:
    return [source.image for source in sources if isinstance(source, Item) and isinstance(source.image, Path)]
