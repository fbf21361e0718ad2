"""Which versions of which models are loaded, are being loaded or would not load: what Triton's log says of it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pinstream_cli.errors import CommandError

# 'I1122 18:22:00.022609 2344 model_lifecycle.cc:849] "successfully loaded 'yolox'"'; clients write behind "]".
_SAYS = r"^[^\]\"]*\b{}\.cc:\d+\] \"?"
_LIFECYCLE, _SERVER = _SAYS.format("model_lifecycle"), _SAYS.format("server")
LOADING = re.compile(_LIFECYCLE + r"loading: (.+):(\d+)")
LOADED = re.compile(_LIFECYCLE + r"successfully loaded '(.+?)'")
FAILED = re.compile(_LIFECYCLE + r"failed to load '(.+?)' version (\d+): (.*)")
GIVEN_UP = re.compile(_LIFECYCLE + r"failed to load '(.+?)'\"?$")
UNLOADED = re.compile(_LIFECYCLE + r"successfully unloaded '(.+?)' version (\d+)")
STOPPING = re.compile(_SERVER + r"Waiting for in-flight requests to complete")
# Python puts the exception first and its own traceback behind "At:".
# Triton's log writes its line breaks out.
TRACEBACK = re.compile(r"(\s|\\n)*(At:|Traceback).*", re.DOTALL)


class Version(NamedTuple):
    """A version of a model."""

    model: str
    number: int


class LoadFailed(CommandError):
    """The server has not started, since models could not be loaded.

    Args:
        failed: The versions that would not load, and why; empty where Triton names none.
        text: What to say instead of that.
    """

    def __init__(self, failed: Mapping[Version, str], text: str = "") -> None:
        reasons = "; ".join(f"'{version.model}': {why}" for version, why in failed.items())
        super().__init__(text or f"Triton could not load {reasons}")
        self.failed = failed


@dataclass(frozen=True)
class Failure:
    """Why a version would not load, and when that was, as time.monotonic()."""

    why: str
    at: float


class Loads:
    """Follows a server's log.

    Attributes:
        loading: What is being loaded.
        failures: The newest failure of each version.
    """

    def __init__(self) -> None:
        self.loading: set[Version] = set()
        self.failures: dict[Version, Failure] = {}
        # A version is loaded anew before the old one of the same number goes. A poll may load one anew in place, as
        # after a broken one above it is gone, and nothing goes: it counts once too often from then on (Stubs.runs).
        self._there: Counter[Version] = Counter()
        self._stopping = False

    @property
    def versions(self) -> set[Version]:
        """The versions that are loaded; of a server that stops, those that were."""
        return {version for version, count in list(self._there.items()) if count > (version in self.loading)}

    @property
    def models(self) -> set[str]:
        """The models that have a version loaded."""
        return {version.model for version in self.versions}

    @property
    def failed(self) -> dict[Version, str]:
        """The versions that would not load, and have not loaded since, and why."""
        return {version: failure.why for version, failure in list(self.failures.items())}

    def read(self, line: str) -> str | None:
        """Take a line of the log; the name of the model that it says has loaded, if any."""
        if match := LOADING.search(line):
            version = Version(match[1], int(match[2]))
            self.loading.add(version)
            self._there[version] += 1
        elif match := LOADED.search(line):
            for version in self._done(match[1]):
                self.failures.pop(version, None)
            return None if self._stopping else match[1]
        elif match := FAILED.search(line):
            version = Version(match[1], int(match[2]))
            self.failures[version] = Failure(TRACEBACK.sub("", match[3]).rstrip('"'), time.monotonic())
            self._gone(version)
            self.loading.discard(version)
        elif match := GIVEN_UP.search(line):
            # Its other versions of the same load go again, or have stayed as they were.
            for version in self._done(match[1]):
                self._gone(version)
        elif match := UNLOADED.search(line):
            if not self._stopping:
                self._gone(Version(match[1], int(match[2])))
        elif STOPPING.search(line):
            self._stopping = True
        return None

    def _done(self, model: str) -> list[Version]:
        """Forget that versions of a model are being loaded; which these were."""
        done = [version for version in self.loading if version.model == model]
        self.loading.difference_update(done)
        return done

    def _gone(self, version: Version) -> None:
        self._there[version] = max(0, self._there[version] - 1)
