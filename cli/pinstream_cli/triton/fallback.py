"""How a server is started so that all that can be served is: without versions that would not load, or whole models.

Triton loads the versions of a model that its policy takes, and where one fails no other; and where a model fails it
does not start. While it runs, a version that would not load takes nothing down. So it has to be when it starts again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pinstream_cli.triton.arguments import CONTROL, control_mode, without
from pinstream_cli.triton.loads import LoadFailed, Loads, Version
from pinstream_cli.triton.repository import RepositoryError, model_directories, read_model

UNKNOWN = "Triton's reason is in its log, above"
GONE = "its directory is not there any more; put it back"
DEAD_LINK = "a link that leads nowhere; put back what it names, or remove it, and start serve again"


class Fallback:
    """What the starts and the lives of a server have taught for its next start.

    Args:
        repositories: The user's model repositories.
        arguments: tritonserver's arguments as the user gave them.

    Attributes:
        hidden: Versions that a start leaves out, since a model has another one, and why they would not load.
        tolerant: Whether to serve what does load where not every model does.
    """

    def __init__(self, repositories: Sequence[Path] = (), arguments: Sequence[str] = ()) -> None:
        self.hidden: dict[Version, str] = {}
        self.tolerant = False
        self._repositories = repositories
        self._given = arguments
        self._mode = control_mode(arguments)
        # Before the first life nobody has loaded anything over the API.
        self._last_loaded: set[str] | None = None
        self._required: set[str] = set()

    def arguments(self) -> list[str]:
        """Arguments of tritonserver for the next start."""
        arguments = list(self._given)
        if self._mode == "explicit" and self._last_loaded is not None:
            loads = [f"--load-model={model}" for model in sorted(self._last_loaded)]
            arguments = without("--load-model", arguments) + loads
        if self.tolerant:
            arguments.append("--exit-on-error=false")
        if self._mode == "none" and (self.tolerant or self.hidden or self._gone()):
            # Triton tries again what would not load or is not there, and takes nothing down for it.
            arguments.append(f"{CONTROL}=poll")
        return arguments

    def learn(self, error: Exception, *, was_ready: bool) -> bool:
        """Take why a start failed; whether the next one leaves something out that this one did not.

        Args:
            error: What it raised.
            was_ready: Whether a server was ready before: only then are models left out of which no version loads.
        """
        if not isinstance(error, LoadFailed):
            return False
        self.tolerant = was_ready and bool(self._repositories)
        return self._hide(error.failed)

    def remember(self, loads: Loads) -> None:
        """Take what a server had loaded when its life ended."""
        # Without control, and so without anybody's wish that a model goes, what was served once is served again.
        before = (self._last_loaded or set()) if self._mode == "none" else set()
        self._last_loaded, self.tolerant = loads.models | before, False
        for version in list(self.hidden):
            # Put right and loaded since, or taken away.
            if version in loads.versions or not self._directories(version):
                del self.hidden[version]

    def lacking(self, loads: Loads, required: Collection[str]) -> list[str]:
        """What a server that has started lacks, and why.

        Args:
            loads: What it has loaded.
            required: Models that it has to have.

        Raises:
            LoadFailed: It lacks what it has to have, or has nothing at all, or could have another version.
        """
        said = [
            f"version {version.number} of model '{version.model}', of which another one is served: {why}"
            for version, why in self.hidden.items()
        ]
        self._required = set(required)
        gone = self._gone()
        if not (self.tolerant or gone):
            return said
        wanted, loaded, failed = {*required, *self._wanted(), *gone}, loads.models, loads.failed
        if not loaded.issuperset(required) or (wanted and not loaded) or self._hide(failed):
            missing = "".join(f"; model '{model}': {GONE}" for model in sorted(gone))
            names = ", ".join(sorted(wanted - loaded))
            raise LoadFailed(failed, "" if failed else f"Triton could not load {names}{missing}")
        reasons = dict.fromkeys(gone, GONE) | {version.model: why for version, why in failed.items()}
        return said + [f"model '{model}': {reasons.get(model, UNKNOWN)}" for model in sorted(wanted - loaded)]

    def _wanted(self) -> set[str]:
        if self._mode == "explicit":
            return self._last_loaded or set()
        return {path.name for repository in self._repositories for path in model_directories(repository)}

    def _gone(self) -> set[str]:
        """Models of the repositories that were loaded before, and have no directory there now.

        A link that leads nowhere is told apart, and what it names is not seen before the next start.
        """
        places = self._repositories
        return {
            model
            for model in (self._last_loaded or set()) - self._required
            if not any(os.path.isdir(place / model) or os.path.islink(place / model) for place in places)
        }

    def _hide(self, failed: Mapping[Version, str]) -> bool:
        """Leave versions out where others are there; whether there is any such."""
        fresh = {v: why for v, why in failed.items() if v not in self.hidden and self._has_others(v.model, failed)}
        self.hidden.update(fresh)
        return bool(fresh)

    def _directories(self, version: Version) -> list[Path]:
        paths = [repository / version.model / str(version.number) for repository in self._repositories]
        return [path for path in paths if path.exists()]

    def _has_others(self, model: str, failed: Collection[Version]) -> bool:
        """Whether the model's version policy takes any of the versions that are neither hidden nor have failed."""
        for path in (repository / model for repository in self._repositories if (repository / model).is_dir()):
            with contextlib.suppress(RepositoryError):
                found = read_model(path)
                left = {k: n for k, n in found.numbers.items() if Version(model, n) not in {*self.hidden, *failed}}
                if replace(found, numbers=left).chosen:
                    return True
        return False


class Views:
    """Model repositories as a server sees them while it starts, less what is hidden, and in full from then on.

    Args:
        directory: Where they are put together.
        repositories: The repositories.
        hidden: Versions to be left out at the start.

    Attributes:
        paths: What the server is to be given for each.
        left_out: What in them would keep Triton from reading the rest, and what to do.
    """

    def __init__(self, directory: Path, repositories: Sequence[Path], hidden: Collection[Version]) -> None:
        self.paths = [repository.resolve() for repository in repositories]
        self._links: dict[Path, Path] = {}
        self.left_out: list[str] = []
        for index, repository in enumerate(self.paths):
            dead = _dead_links(repository)
            self.left_out += [f"{path}, {DEAD_LINK}" for path in dead]
            if dead or any((repository / version.model / str(version.number)).exists() for version in hidden):
                view, link = directory / f"{index}.view", directory / str(index)
                _mirror(repository, view, hidden)
                link.symlink_to(view)
                self._links[link], self.paths[index] = repository, link

    def reword(self, text: str) -> str:
        """Name the repositories in a text as the user does."""
        for link, repository in self._links.items():
            text = text.replace(f"{link}/", f"{repository}/")
        return text

    def open(self) -> None:
        """Let everything be seen: what would not load takes nothing down any more.

        A link that leads nowhere does: a Triton 2.51 that looks for changes unloads all that is beside it.
        """
        for link, repository in self._links.items():
            target, new = repository, link.with_suffix(".new")
            if _dead_links(repository):
                target = link.with_suffix(".all")
                _mirror(repository, target, [])
            new.symlink_to(target)
            new.replace(link)


def _dead_links(repository: Path) -> list[Path]:
    return sorted(path for path in repository.iterdir() if not path.exists())


def _mirror(repository: Path, view: Path, hidden: Collection[Version]) -> None:
    """Make a directory with links to a repository's models, and instead of some to what is in them."""
    view.mkdir(parents=True)
    for model in (path for path in repository.iterdir() if path.exists()):
        out = {str(version.number) for version in hidden if version.model == model.name}
        if out:
            (view / model.name).mkdir()
            for entry in (entry for entry in model.iterdir() if entry.name not in out):
                (view / model.name / entry.name).symlink_to(entry)
        else:
            (view / model.name).symlink_to(model)
