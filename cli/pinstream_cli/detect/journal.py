"""What an interrupted run has finished: a line of JSON for each image, beside what the run writes.

Every format is made from these lines once all images are done, so that a file of results is never half of one, and a
run that is killed loses at most the images under way.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

from pinstream_cli.detect.records import Record, read_record
from pinstream_cli.errors import CommandError

Key = tuple[str, str]


class Journal:
    """The finished images of this run and of interrupted ones before it.

    Args:
        path: The journal's file; it is there only while a run is unfinished.
        settings: What the results depend on. A journal of other settings is not continued.
        names: The model's labels.
        restart: Begin anew, whatever is there.
        wanted: Names and stamps of this run's images: others are not taken over. None takes over all.

    Raises:
        CommandError: The file has other settings, or cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        names: tuple[str, ...],
        *,
        restart: bool = False,
        wanted: Container[Key] | None = None,
    ) -> None:
        self.path = path
        self._names = names
        self.done: set[Key] = set()
        try:
            kept = [] if restart or not path.exists() else self._read(settings, wanted)
            # Written anew: the last line may be torn, and an image that failed is tried again.
            fresh = path.with_name(path.name + ".new")
            with fresh.open("w", encoding="utf-8") as file:
                for entry in ({"settings": settings}, *kept):
                    file.write(_line(entry))
            fresh.replace(path)
            self._file: IO[str] = path.open("a", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror or error}") from None

    def add(self, record: Record, stamp: str) -> None:
        """Keeps a result, past the end of this process.

        Raises:
            CommandError: It cannot be written.
        """
        try:
            self._file.write(_line({"stamp": stamp, **record.to_dict()}))
            self._file.flush()
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror or error}") from None
        if stamp:
            self.done.add((record.image, stamp))

    def records(self) -> Iterator[Record]:
        """Every finished image."""
        self._file.flush()
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield read_record(json.loads(line), self._names)

    def close(self) -> None:
        """Leaves the file for the next run."""
        self._file.close()

    def remove(self) -> None:
        """Ends the run: nothing is left to be resumed."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self, settings: dict[str, Any], wanted: Container[Key] | None) -> list[dict[str, Any]]:
        """The lines that this run takes over."""
        entries = list(_entries(self.path))
        found = entries[0].get("settings") if entries else settings
        if found != settings:
            raise CommandError(
                f"{self.path} is of an interrupted run with other settings ({_differences(found, settings)}): "
                "give the same ones to go on with it, or --restart to begin anew"
            )
        kept = []
        for entry in entries[1:]:
            key = (str(entry.get("image")), str(entry.get("stamp")))
            if not key[1] or "detections" not in entry or key in self.done or not (wanted is None or key in wanted):
                continue
            self.done.add(key)
            kept.append(entry)
        return kept


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                return  # torn where the run was killed
            if isinstance(entry, dict):
                yield entry


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _differences(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "they cannot be read"
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return ", ".join(f"{name} {_shown(found.get(name))}, now {_shown(wanted[name])}" for name in names)


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
