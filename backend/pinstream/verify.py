"""VERIFY=true: only the very file that was built is loaded, and only where nobody else could have changed it.

A plan is executable code, and an ONNX file may lead outside its directory. The sidecar's SHA-256 tells a file that was
swapped or damaged; the owners and permissions tell whether somebody could swap file and sidecar together, or put
another configuration, version or directory in their place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pinstream.errors import ModelFileError
from pinstream.sidecar import FILE_NAME, Sidecar, SidecarError, file_sha256, read

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# What Triton looks for in the directories of a model before it takes its own: libraries of backends and of a batching
# strategy, in those of the version and of the model, and the process of its Python backend, in that of the model alone.
_LIBRARIES, _STUB = ("libtriton_*.so", "batchstrategy.so"), "triton_python_backend_stub"


def verify_model(model_file: Path, *, is_onnx: bool, libraries: Iterable[Path] = ()) -> None:
    """Hold a model's files against its sidecar, and their owners against this process.

    Args:
        model_file: The file that is to be loaded, `<repository>/<model>/<version>/<file>`; the sidecar lies beside it.
        is_onnx: Whether it is an ONNX file, which may keep weights in other files.
        libraries: Shared libraries that are loaded with it; the sidecar does not list them.

    Raises:
        ModelFileError: There is no sidecar, it does not list a file or lists another content, or others than this
            process' user and root can write the file, the sidecar, the configuration, or a directory that leads there;
            or a link leads out of the repository, or an ONNX file keeps weights elsewhere than beside it; or there is
            code that Triton takes for its own.
    """
    _check_overrides(model_file.parent)
    path = model_file.parent / FILE_NAME
    _check_inside(path)
    try:
        sidecar = read(path)
    except SidecarError as error:
        raise ModelFileError(f"VERIFY is set, and {error}") from error
    digests = _digests(sidecar, model_file.name, is_onnx=is_onnx)
    if model_file.name not in digests:
        raise ModelFileError(
            f"VERIFY is set, and {path} does not list {model_file.name}; it lists {', '.join(digests)}"
        )
    for name in digests:
        _check_inside(model_file.parent / name)
    _check_files(model_file.parent, digests)
    if is_onnx:
        # After the file itself: only what is known to be the model is read.
        _check_weights(model_file, digests)
    for place in places_of(model_file.parent, (path, *libraries)):
        _check_owner(place)


def _check_overrides(version: Path) -> None:
    """Tell of what Triton has run by now, where it was there: nobody else does."""
    try:
        unverified = runs_unverified(version.absolute().parent, version)
    except OSError as error:
        raise ModelFileError(f"VERIFY is set, and {error.filename} cannot be looked at: {error.strerror}") from error
    if unverified:
        raise ModelFileError(f"VERIFY is set, and {unverified}")


def _check_inside(file: Path) -> None:
    """See that no link leads from a file of a version out of the repository; of its directories, one may."""
    version = file.parent.absolute()
    place, home, repository = (Path(os.path.realpath(path)) for path in (file, version, version.parent.parent))
    if not place.is_relative_to(home) and not place.is_relative_to(repository):
        raise ModelFileError(
            f"VERIFY is set, and {file} leads to {place}, outside of the model repository {repository}; put the file "
            "itself there"
        )


def _check_weights(model_file: Path, digests: Mapping[str, str]) -> None:
    """See that every file that an ONNX file keeps weights in lies beside it and is listed."""
    # Needed for ONNX files alone.
    from pinstream.plans.graph import external_files, read_graph

    for location in external_files(read_graph(model_file)):
        name = str(Path(location))
        if Path(name).name != name:
            raise ModelFileError(
                f"VERIFY is set, and {model_file} keeps weights in {location!r}; they must lie in its own directory, "
                "or in the file itself"
            )
        if name not in digests:
            raise ModelFileError(
                f"VERIFY is set, and {model_file} keeps weights in {name}, which {FILE_NAME} does not list; put its "
                f"SHA-256 under external_data, or the weights into {model_file.name}"
            )


def _check_files(directory: Path, digests: Mapping[str, str]) -> None:
    for name, expected in digests.items():
        _check_owner(directory / name)
        try:
            found = file_sha256(directory / name)
        except OSError as error:
            raise ModelFileError(f"VERIFY is set, and {directory / name} cannot be read: {error.strerror}") from error
        if found != expected:
            raise ModelFileError(
                f"VERIFY is set, and {directory / name} is not the file that {FILE_NAME} lists: its SHA-256 "
                "differs; copy both again, or build the model again"
            )


def _digests(sidecar: Sidecar, wanted: str, *, is_onnx: bool) -> dict[str, str]:
    """SHA-256 of the files that the sidecar lists; of the ONNX file that plans are built from where it is wanted."""
    digests = {sidecar.file: sidecar.sha256}
    source = _entries(sidecar, "onnx")
    if wanted in source:
        digests.setdefault(wanted, source[wanted])
    # Plans have their weights inside: they may be copied without the model that they were built from.
    for section in ("plans", "external_data") if is_onnx else ("plans",):
        digests |= _entries(sidecar, section)
    return digests


def listed_files(sidecar: Sidecar) -> set[str]:
    """Names of all files that a sidecar lists: the model, its plans, what they were built from, and weights."""
    return {sidecar.file}.union(*(_entries(sidecar, section) for section in ("onnx", "plans", "external_data")))


def _entries(sidecar: Sidecar, section: str) -> dict[str, str]:
    """SHA-256 of the files in one section of a sidecar; without names that lead out of its directory."""
    content = sidecar.sections.get(section)
    return {
        str(entry["file"]): str(entry.get("sha256"))
        for entry in (content if isinstance(content, list) else [content])
        if isinstance(entry, Mapping) and Path(str(entry.get("file"))).name == entry.get("file")
    }


def _check_owner(path: Path) -> None:
    try:
        others = others_can_write(path)
    except OSError as error:
        raise ModelFileError(f"VERIFY is set, and {path} cannot be looked at: {error.strerror}") from error
    if others:
        raise ModelFileError(f"VERIFY is set, and {others}")


def places_of(version: Path, files: Iterable[Path]) -> list[Path]:
    """What has to be nobody else's to write for a version of a model to be what its owner made.

    Args:
        version: Its directory, `<repository>/<model>/<version>`.
        files: What is loaded from it.
    """
    model = version.absolute().parent
    configurations = (path for path in (model / "config.pbtxt", model / "configs") if path.exists())
    return [model.parent, model, *configurations, *(model / "configs").glob("*.pbtxt"), version, *files]


def overrides(model: Path, *versions: Path) -> list[Path]:
    """What of a model Triton runs in place of its own code and of the backend's, or before the backend can look at it.

    Args:
        model: The model's directory, `<repository>/<model>`.
        versions: Those of its versions' directories that are to be looked at.

    Raises:
        OSError: One of them cannot be looked at.
    """
    there = (path for place in (model, *versions) for path in place.iterdir())
    libraries = (path for path in there if any(map(path.match, _LIBRARIES)))
    return sorted([*libraries, *(path for path in model.iterdir() if path.name == _STUB)])


def runs_unverified(model: Path, *versions: Path) -> str:
    """Which code of a model Triton runs unverified, and what to do; empty for none.

    Args:
        model: The model's directory, `<repository>/<model>`.
        versions: Those of its versions' directories that are to be looked at.

    Raises:
        OSError: One of them cannot be looked at.
    """
    code = overrides(model, *versions)
    return f"{code[0]} is code that Triton runs before this backend can verify it; remove it" if code else ""


def others_can_write(path: Path) -> str:
    """Who but root and this process' user decides what a path leads to, and what to do; empty where nobody does.

    That is who can write it, or a directory on the way to it, by its name as well as by the links in it. A directory on
    the way may be everybody's where only the owner of an entry can rename it, as in /tmp.

    Raises:
        OSError: It cannot be looked at.
    """
    # Also finds links that lead in circles.
    path.stat()
    *way, place = _way(path)
    return next(filter(None, (_others(step, path) for step in way)), "") or _others(place, path, last=True)


def _way(path: Path) -> Iterator[Path]:
    """Every directory and link that a name leads through, and at last what it leads to."""
    place = Path("/")
    names = list(reversed(path.absolute().parts[1:]))
    yield place
    while names:
        if (name := names.pop()) == "..":
            place = place.parent
            continue
        place /= name
        yield place
        if place.is_symlink():
            target = place.readlink()
            place = place.parent
            names += reversed(target.parts)


def _others(place: Path, path: Path, *, last: bool = False) -> str:
    status = place.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    why = "" if place == path else f", which leads to {path}"
    if status.st_uid not in (0, os.geteuid()):
        return (
            f"{place}{why} belongs to user {status.st_uid}, neither root nor this server's user {os.geteuid()}; "
            f"{'chown -h it' if is_link else 'chown it'}"
        )
    only_owners_rename = not last and status.st_mode & stat.S_ISVTX
    if is_link or only_owners_rename or not status.st_mode & _OTHERS_WRITE:
        return ""
    # Made for many, or not ours to change: whoever closed it would harm others.
    shared = status.st_mode & stat.S_ISVTX or status.st_uid != os.geteuid()
    remedy = "move what is served to a directory that only this user can write" if shared else f"chmod go-w {place}"
    return f"others can write {place}{why} (mode {stat.S_IMODE(status.st_mode):o}); {remedy}"
