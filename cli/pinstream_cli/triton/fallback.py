"""How a server is started so that all that can be served is: without versions that would not load, or whole models.

Triton loads the newest version of a model, and where that fails no other; and where a model fails it does not start.
While it runs, a new version that cannot be loaded takes nothing down. So it has to be when it is started again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pinstream_cli.triton.arguments import values_of, without
from pinstream_cli.triton.loads import LoadFailed, Loads, Version
from pinstream_cli.triton.repository import model_directories

CONTROL = "--model-control-mode"
UNKNOWN = "Triton's reason is in its log, above"


class Fallback:
    """What the starts and the lives of a server have taught for its next start.

    Args:
        repositories: The user's model repositories.
        arguments: tritonserver's arguments as the user gave them.

    Attributes:
        hidden: Versions that a start leaves out, since a model has an older one, and why they would not load.
        tolerant: Whether to serve what does load where not every model does.
    """

    def __init__(self, repositories: Sequence[Path] = (), arguments: Sequence[str] = ()) -> None:
        self.hidden: dict[Version, str] = {}
        self.tolerant = False
        self._repositories = repositories
        self._given = arguments
        self._mode = (values_of(CONTROL, arguments) or ["none"])[-1]
        # Before the first life nobody has loaded anything over the API.
        self._last_loaded: set[str] | None = None

    def arguments(self) -> list[str]:
        """Arguments of tritonserver for the next start."""
        arguments = list(self._given)
        if self._mode == "explicit" and self._last_loaded is not None:
            loads = [f"--load-model={model}" for model in sorted(self._last_loaded)]
            arguments = without("--load-model", arguments) + loads
        if self.tolerant:
            arguments.append("--exit-on-error=false")
        if self._mode == "none" and (self.tolerant or self.hidden):
            # Triton tries again what would not load, and takes nothing down for it.
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
        self._last_loaded, self.tolerant = loads.models, False
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
            LoadFailed: It lacks what it has to have, or has nothing at all, or could have an older version.
        """
        said = [
            f"version {version.number} of model '{version.model}', of which an older one is served: {why}"
            for version, why in self.hidden.items()
        ]
        if not self.tolerant:
            return said
        wanted, loaded, failed = {*required, *self._wanted()}, loads.models, loads.failed
        if not loaded.issuperset(required) or (wanted and not loaded) or self._hide(failed):
            raise LoadFailed(failed, "" if failed else f"Triton could not load {', '.join(sorted(wanted - loaded))}")
        reasons = {version.model: why for version, why in failed.items()}
        return said + [f"model '{model}': {reasons.get(model, UNKNOWN)}" for model in sorted(wanted - loaded)]

    def _wanted(self) -> set[str]:
        if self._mode == "explicit":
            return self._last_loaded or set()
        return {path.name for repository in self._repositories for path in model_directories(repository)}

    def _hide(self, failed: Mapping[Version, str]) -> bool:
        """Leave versions out where an older one is there; whether there is any such."""
        fresh = {v: why for v, why in failed.items() if v not in self.hidden and self._has_older(v)}
        self.hidden.update(fresh)
        return bool(fresh)

    def _directories(self, version: Version) -> list[Path]:
        paths = [repository / version.model / str(version.number) for repository in self._repositories]
        return [path for path in paths if path.exists()]

    def _has_older(self, version: Version) -> bool:
        entries = (path.name for repository in self._repositories for path in (repository / version.model).glob("*"))
        numbers = (int(name) for name in entries if name.isdecimal())
        return any(n < version.number and Version(version.model, n) not in self.hidden for n in numbers)


class Views:
    """Model repositories as a server sees them while it starts, less what is hidden, and in full from then on.

    Args:
        directory: Where they are put together.
        repositories: The repositories.
        hidden: Versions to be left out at the start.

    Attributes:
        paths: What the server is to be given for each.
    """

    def __init__(self, directory: Path, repositories: Sequence[Path], hidden: Collection[Version]) -> None:
        self.paths = [repository.resolve() for repository in repositories]
        self._links: dict[Path, Path] = {}
        for index, repository in enumerate(self.paths):
            if any((repository / version.model / str(version.number)).exists() for version in hidden):
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
        """Let everything be seen: what would not load takes nothing down any more."""
        for link, repository in self._links.items():
            new = link.with_suffix(".new")
            new.symlink_to(repository)
            new.replace(link)


def _mirror(repository: Path, view: Path, hidden: Collection[Version]) -> None:
    """Make a directory with links to a repository's models, and instead of some to what is in them."""
    view.mkdir(parents=True)
    for model in repository.iterdir():
        out = {str(version.number) for version in hidden if version.model == model.name}
        if out:
            (view / model.name).mkdir()
            for entry in (entry for entry in model.iterdir() if entry.name not in out):
                (view / model.name / entry.name).symlink_to(entry)
        else:
            (view / model.name).symlink_to(model)
