"""VERIFY=true: only the very file that was built is loaded, and only where nobody else could have changed it.

A plan is executable code, and an ONNX file may lead outside its directory. The sidecar's SHA-256 tells a file that was
swapped or damaged; the owners and permissions tell whether somebody could swap file and sidecar together.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pinstream.errors import ModelFileError
from pinstream.sidecar import FILE_NAME, Sidecar, SidecarError, file_sha256, read

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def verify_model(model_file: Path) -> None:
    """Hold a model's files against its sidecar, and their owners against this process.

    Args:
        model_file: The file that is to be loaded; the sidecar lies beside it.

    Raises:
        ModelFileError: There is no sidecar, it does not list a file or lists another content, or others than this
            process' user and root can write the file, the sidecar or their directory.
    """
    path = model_file.parent / FILE_NAME
    try:
        sidecar = read(path)
    except SidecarError as error:
        raise ModelFileError(f"VERIFY is set, and {error}; build the model again with `pinstream build`") from error
    digests = _digests(sidecar)
    if model_file.name not in digests:
        raise ModelFileError(
            f"VERIFY is set, and {path} does not list {model_file.name}; it lists {', '.join(digests)}"
        )
    for name, expected in digests.items():
        _check_owner(model_file.parent / name)
        if file_sha256(model_file.parent / name) != expected:
            raise ModelFileError(
                f"VERIFY is set, and {model_file.parent / name} is not the file that {FILE_NAME} lists: its SHA-256 "
                "differs; copy both again, or build the model again"
            )
    for place in (path, model_file.parent):
        _check_owner(place)


def _digests(sidecar: Sidecar) -> dict[str, str]:
    """SHA-256 of every file that the sidecar lists."""
    digests = {sidecar.file: sidecar.sha256}
    plans = sidecar.sections.get("plans")
    for plan in plans if isinstance(plans, list) else []:
        if isinstance(plan, Mapping) and Path(str(plan.get("file"))).name == plan.get("file"):
            digests[str(plan["file"])] = str(plan.get("sha256"))
    return digests


def _check_owner(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"VERIFY is set, and {path} cannot be looked at: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise ModelFileError(
            f"VERIFY is set, and {path} belongs to user {status.st_uid}, neither root nor this server's user "
            f"{os.geteuid()}; chown it"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise ModelFileError(
            f"VERIFY is set, and others can write {path} (mode {stat.S_IMODE(status.st_mode):o}); chmod go-w {path}"
        )
