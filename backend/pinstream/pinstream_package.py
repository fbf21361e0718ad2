"""Makes the package `pinstream` importable from a script that lies in it, as Triton's backends do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def import_beside(file: str) -> None:
    """Make `pinstream` the package `file` lies in, whatever else of that name is installed or on sys.path.

    Triton's stub puts <backends>/pinstream on sys.path, not <backends>. Adding that would make every backend's
    directory a package: <backends>/tensorrt would answer to `import tensorrt`.
    """
    here = Path(file).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "pinstream", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    # Its modules are reached through the package alone; as names of their own they would hide others, such as `cuda`.
    sys.path[:] = [entry for entry in sys.path if not _leads_to(entry, here)]
    package = importlib.util.module_from_spec(spec)
    sys.modules["pinstream"] = package
    spec.loader.exec_module(package)


def _leads_to(entry: str, directory: Path) -> bool:
    try:
        return Path(entry).resolve() == directory
    except FileNotFoundError:
        return False  # the working directory, which is gone
