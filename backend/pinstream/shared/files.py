"""Whether a model's files are still the ones that it was loaded from: an engine may come back as no other model."""

from __future__ import annotations

from pathlib import Path

State = tuple[int, int, int]


class ModelFiles:
    """What lies in a version directory, which all that makes up a model does: plans, weights, sidecar.

    Known by inode, time and size, and not by its bytes, which would have to be read before each load. What is put there
    later does not matter, and what is hidden never does.

    Args:
        model_file: The file to be loaded; not there where AUTO_BUILD has yet to build it.
    """

    def __init__(self, model_file: Path) -> None:
        files = (path for path in model_file.parent.iterdir() if path.is_file() and not path.name.startswith("."))
        self._loaded = {path: _state(path) for path in (*files, model_file)}

    def changed(self) -> str:
        """The first that is not what was loaded, and what to do; empty where all are."""
        for path, loaded in self._loaded.items():
            if (found := _state(path)) != loaded:
                return (
                    f"{path} {'was replaced after it was loaded' if found else 'is gone'}; start the server again, as "
                    "`pinstream serve --restart` does by itself, to load what is there"
                )
        return ""


def _state(path: Path) -> State | None:
    """Inode, time of the last change in ns and size in bytes; None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
