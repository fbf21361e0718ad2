"""Which version directories of a model Triton takes: by their names, and by the model's version policy."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

# Directories of a model that Triton does not take for versions.
NO_VERSIONS = ("warmup", "initial_state")
# What C's strtoll reads: Triton takes "2_old" for version 2.
NUMBER = re.compile(r"[ \t\n\r\f\v]*([+-]?[0-9]+)")
# Beyond it, Triton 2.51 ends.
LARGEST = (1 << 63) - 1


def version_numbers(model: Path) -> dict[str, int]:
    """Directories of a model that Triton takes for versions, by name, and the number that it reads in each name."""
    names = (path.name for path in model.iterdir() if path.is_dir() and path.name not in NO_VERSIONS)
    # Triton passes over leading zeros.
    found = {name: NUMBER.match(name) for name in names if name == "0" or not name.startswith("0")}
    return {name: int(match[1]) for name, match in found.items() if match}


def chosen(policy: Any, numbers: Collection[int]) -> list[int]:
    """The versions that a version policy takes, oldest first.

    Args:
        policy: A ModelVersionPolicy, or None where the configuration has none: then Triton takes the newest.
        numbers: The versions that there are.
    """
    there = sorted(set(numbers))
    kind = policy.WhichOneof("policy_choice") if policy is not None else "latest"
    if kind == "specific":
        return [number for number in there if number in policy.specific.versions]
    if kind == "latest":
        newest = 1 if policy is None else policy.latest.num_versions
        return there[max(0, len(there) - newest) :]
    return there
