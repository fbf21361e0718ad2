"""What the command line names, as images to send: files, directories, globs, standard input, videos, cameras."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pinstream_cli.detect.video import Video, is_video
from pinstream_cli.errors import CommandError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
STDIN = "-"


@dataclass(frozen=True, eq=False)
class Item:
    """One image to send.

    Attributes:
        name: What it is called in every output.
        image: A file, its bytes, or a frame as uint8 [height, width, 3] in BGR order.
        place: Where its annotated picture belongs below the output directory, without a suffix.
        stamp: Size and time of change of a file, to know it again in a later run; "" where there is none.
        video: Where a frame comes from.
        frame: Number of the frame, from 0.
        time_s: When the frame is shown, in seconds from the start.
    """

    name: str
    image: Path | bytes | NDArray[Any]
    place: Path
    stamp: str = ""
    video: Video | None = None
    frame: int | None = None
    time_s: float | None = None


Source: TypeAlias = "Item | Video"


def resolve(arguments: Sequence[str], leave_out: Path | None = None) -> list[Source]:
    """Everything that the arguments name, in their order; a directory's images by their paths.

    A file that is there is taken as it is called, also when its name looks like a pattern or a number. One that is not
    there stays in the list: reading it says so.

    Args:
        arguments: Paths, patterns, "-" for an image on standard input, numbers of cameras.
        leave_out: A directory whose contents are no input: what an earlier run wrote.

    Raises:
        CommandError: A directory without images, a pattern that nothing matches, or "-" twice.
    """
    if arguments.count(STDIN) > 1:
        raise CommandError("standard input (-) can be read only once")
    found = [source for argument in arguments for source in _resolve_one(argument, leave_out)]
    # What is named twice is looked at once.
    return list({source.name: source for source in found}.values())


def items(sources: Sequence[Source]) -> Iterator[Item]:
    """The images themselves, read as late as possible."""
    for source in sources:
        if isinstance(source, Item):
            yield source
        else:
            yield from frames(source)


def frames(video: Video) -> Iterator[Item]:
    """A video's frames."""
    place = Path(video.stem)
    for frame in video.frames():
        yield Item(video.name, frame.pixels, place, video=video, frame=frame.number, time_s=frame.time_s)


def count(sources: Sequence[Source]) -> int | None:
    """How many images there are, or None when a camera is among them or a video does not say."""
    counts = [1 if isinstance(source, Item) else source.frame_count for source in sources]
    return None if None in counts else sum(number for number in counts if number is not None)


def file_item(path: Path, base: Path | None = None) -> Item:
    """A file as an image.

    Args:
        path: The file.
        base: The directory that was named, whose tree the annotated pictures repeat.
    """
    place = path.relative_to(base) if base is not None else Path(path.name)
    return Item(str(path), path, place.with_suffix(""), stamp(path))


def stamp(path: Path) -> str:
    """Size and time of change: another picture of the same name is another picture."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def images_below(directory: Path, leave_out: Path | None = None) -> list[Path]:
    """The image files of a directory and its subdirectories, without hidden ones, sorted.

    Raises:
        CommandError: ``leave_out`` is the directory itself.
    """
    excluded = leave_out.resolve() if leave_out is not None else None
    if excluded == directory.resolve():
        raise CommandError(f"--out {leave_out} is where the images are: name another directory")
    found = [
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and (excluded is None or excluded not in path.resolve().parents)
        and path.is_file()
    ]
    return sorted(found)


def _resolve_one(argument: str, leave_out: Path | None) -> list[Source]:
    path = Path(argument)
    if argument == STDIN:
        return [Item("-", sys.stdin.buffer.read(), Path("stdin"))]
    if path.is_dir():
        return _directory(path, leave_out)
    if path.exists():
        return [_file(path)]
    if argument.isdecimal():
        return [Video.camera(int(argument))]
    if glob.has_magic(argument):
        return _pattern(argument)
    return [_file(path)]


def _file(path: Path) -> Source:
    return Video.file(path) if is_video(path) else file_item(path)


def _directory(directory: Path, leave_out: Path | None) -> list[Source]:
    found = images_below(directory, leave_out)
    if not found:
        raise CommandError(f"no image in {directory}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return [file_item(path, directory) for path in found]


def _pattern(pattern: str) -> list[Source]:
    found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not found:
        raise CommandError(f"no file matches '{pattern}'")
    return [_file(path) for path in found]
