"""rich's console for texts from outside: the only one that is used here, which a test holds.

What somebody called `[red]model` stays that: words of our own that are to be coloured are a `Text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import IO, Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Span, Text

from pinstream_cli.terminal import behind, visible


class Console(rich.console.Console):
    """rich's console, in which control characters of texts are shown, and nothing in them is taken for a mark."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **how})

    @property
    def file(self) -> IO[str]:
        """Where it writes."""
        return behind(super().file)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich's."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's."""
        if isinstance(renderable, Text) and visible(renderable.plain) != renderable.plain:
            renderable = _visible_text(renderable)
        return super().render(renderable, options)


def steps_of(status: Status) -> Callable[[str], None]:
    """What shows a step beside a spinner: rich would look for marks in it."""
    return lambda step: status.update(Text(step))


def _visible_text(text: Text) -> Text:
    """`visible` of a text with styles, which stay where they are."""
    plain = text.plain
    shown = text.blank_copy(visible(plain))
    shown.spans = [
        Span(len(visible(plain[:start])), len(visible(plain[:end])), style) for start, end, style in text.spans
    ]
    return shown
