"""Versions that are served from memory alone: their directories are gone, and Triton has put nothing in their place.

Who takes a version back removes its directory, and Triton loads the one before. Where that would not load, as a broken
one that the removed one was to replace, Triton keeps what it has in memory until it ends, and then the version changes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pinstream_cli.triton.arguments import control_mode, values_of
from pinstream_cli.triton.loads import Loads, Version

INTERVAL_S = 2.0
# Beyond Triton's own look, for what it does then: the version before is loaded, and this one ends its requests.
PATIENCE_S = 10.0
# Triton's default of --repository-poll-secs.
DEFAULT_POLL_S = "15"
# What Triton does by itself where it looks for changes.
THEN = {"explicit": " and load the model again", "none": " and start serve again"}


class Withdrawn:
    """Looks for them while a server runs, in a thread of its own: a file system may hang, and nothing waits for that.

    Args:
        loads: What the server has loaded.
        repositories: Its model repositories.
        arguments: tritonserver's arguments.
        tell: Told of each version once.
        runs: Whether a version has a process: by the log alone one may stay loaded that was loaded anew and has gone.
    """

    def __init__(
        self,
        loads: Loads,
        repositories: Sequence[Path],
        arguments: Sequence[str],
        tell: Callable[[str], None],
        runs: Callable[[Version], bool] = lambda version: True,
    ) -> None:
        self._loads = loads
        self._repositories = repositories
        self._mode = control_mode(arguments)
        self._patience = PATIENCE_S
        if self._mode == "poll":
            self._patience += int((values_of("--repository-poll-secs", arguments) or [DEFAULT_POLL_S])[-1])
        self._tell = tell
        self._runs = runs
        # Directories that have been there, and since when those of versions that are served are not.
        self._places: dict[Version, Path] = {}
        self._since: dict[Version, float] = {}
        self._told: set[Version] = set()
        self._ended = threading.Event()

    def look(self, now: float) -> None:
        """Look once, at a time as of time.monotonic()."""
        served, failed = set(filter(self._runs, self._loads.versions)), self._loads.failed
        # What has failed before, and is tried again and again, takes nobody's place.
        replaced = {version.model for version in list(self._loads.loading) if version not in failed}
        for version in served:
            if place := self._directory(version):
                self._places[version] = place
                self._since.pop(version, None)
                self._told.discard(version)
            elif version in self._places:
                since = self._since.setdefault(version, now)
                if version.model in replaced:
                    self._since[version] = now
                elif now - since >= self._patience and version not in self._told:
                    self._told.add(version)
                    self._tell(self._words(version, sorted(set(failed) - served)))
        for gone in self._places.keys() - served:
            del self._places[gone]
            self._since.pop(gone, None)

    def _directory(self, version: Version) -> Path | None:
        paths = (repository / version.model / str(version.number) for repository in self._repositories)
        return next((Path(os.path.realpath(path)) for path in paths if os.path.isdir(path)), None)

    def _words(self, version: Version, failed: Sequence[Version]) -> str:
        broken = [str(v.number) for v in failed if v.model == version.model and self._directory(v)]
        remedy = "put it back, or another version in its place"
        if broken:
            remedy = (
                f"take away as well what Triton would not load in its place ({', '.join(broken)}), or name a good "
                "version with version_policy { specific { versions: [ N ] } } in config.pbtxt"
            )
        return (
            f"version {version.number} of model '{version.model}' is served from memory alone, and no more after a "
            f"restart: {self._places[version]} is not there any more; {remedy}{THEN.get(self._mode, '')}"
        )

    def __enter__(self) -> Withdrawn:
        threading.Thread(target=self._look_on, name="withdrawn", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _look_on(self) -> None:
        while not self._ended.is_set():
            self.look(time.monotonic())
            self._ended.wait(INTERVAL_S)
