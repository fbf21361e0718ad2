"""How far the run is: a bar with rate and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pinstream_cli.console import Console


class RateColumn(ProgressColumn):
    """Images a second over the last seconds."""

    def render(self, task: Task) -> Text:
        """The rate, or a dash before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "- images/s", style="progress.data.speed")


class Bar:
    """The progress of a run on standard error.

    Args:
        console: Standard error.
        total: How many images there are; None when nobody knows: then the bar says how long it has been going on.
        already: How many an earlier run has done.
        shown: Whether to show it at all.
    """

    def __init__(self, console: Console, total: int | None, already: int = 0, shown: bool = True) -> None:
        self._console = console
        end = (TextColumn("left"), TimeRemainingColumn()) if total is not None else (TimeElapsedColumn(),)
        # Standard output is for results, which may go to a file while the bar is on the terminal.
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            *end,
            TextColumn("[red]{task.fields[failures]}"),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not shown or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=already, failures="")
        self._failed = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, failed: bool = False) -> None:
        """One more image is done."""
        self._failed += failed
        failures = f"{self._failed} failed" if self._failed else ""
        self._progress.update(self._task, advance=1, failures=failures)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, soft_wrap=True)
