"""What killed servers and clients have left behind, and clearing it away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.triton import leftovers
from pinstream_cli.triton.preflight import MIB

AREA = "leftovers"


def check_leftovers(*, fix: bool) -> Iterator[Check]:
    """Regions in /dev/shm and run directories with our mark whose processes are gone.

    Args:
        fix: Whether to delete them.
    """
    found = leftovers.remove() if fix else leftovers.dead_runs() + leftovers.dead_regions()
    if not found:
        yield Check(AREA, "of killed servers and clients", "OK", "none")
    for path in found:
        if not path.exists():
            yield Check(AREA, str(path), "OK", "removed")
        elif fix:
            yield Check(AREA, str(path), "FIX", "could not be removed", f"rm -r {path}")
        else:
            yield Check(AREA, str(path), "WARN", _size(path), "pinstream doctor --fix")


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / MIB:.1f} MiB, nobody's any more"
