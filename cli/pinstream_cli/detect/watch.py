"""New images of a directory, as they come.

The directory is listed again and again: unlike the kernel's notifications, that also sees what other machines put onto
a network share, and there is nothing to overflow.
"""

from __future__ import annotations

from pathlib import Path

from pinstream_cli.detect.sources import Item, file_item, images_below

POLL_S = 0.5


class Watch:
    """A directory and what of it has been done.

    Args:
        directory: The directory; subdirectories belong to it.
        leave_out: A directory in it whose contents are no input.
        done: Names and stamps of images that an earlier run has finished.
    """

    def __init__(self, directory: Path, leave_out: Path | None, done: set[tuple[str, str]]) -> None:
        self._directory = directory
        self._leave_out = leave_out
        self._done = done
        self._last: dict[str, str] = {}

    def poll(self) -> list[Item]:
        """Images that are new or changed, and of the same size as at the last call: written to their end."""
        found = [file_item(path, self._directory) for path in images_below(self._directory, self._leave_out)]
        settled = [
            item
            for item in found
            if self._last.get(item.name) == item.stamp and (item.name, item.stamp) not in self._done
        ]
        self._last = {item.name: item.stamp for item in found}
        return settled

    def done(self, item: Item) -> None:
        """The image has its result, or its error: it comes again only when it changes."""
        self._done.add((item.name, item.stamp))
