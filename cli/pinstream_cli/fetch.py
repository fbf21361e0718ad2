"""`pinstream fetch`: the official YOLOX exports, checked, and the same ones every time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pinstream.plans.locks import default_cache_dir, locked
from pinstream.sidecar import file_sha256
from pinstream_cli.apart import apart
from pinstream_cli.console import Console
from pinstream_cli.demo import BUILT_IN_LABELS, BUILT_IN_MODEL, built_in
from pinstream_cli.download import Source, UnreachableError, discard, download
from pinstream_cli.errors import CommandError
from pinstream_cli.yolox_recognise import recognised_shape

# The release that YOLOX's own documentation links to for ONNX files.
RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
# How far a file's size may be from four bytes for each of the paper's parameters: names of nodes, folded batch norms.
_TOLERANCE = 0.1
CLASSES = 80


@dataclass(frozen=True)
class OfficialModel:
    """One of YOLOX's own models.

    Attributes:
        parameters: Their number in millions, as in the paper (arXiv 2107.08430) and YOLOX's README.
        input_size: Height and width of the exported input.
    """

    parameters: float
    input_size: int

    @property
    def size_limits(self) -> tuple[int, int]:
        """Fewest and most bytes of its file."""
        usual = self.parameters * 4e6
        return round(usual * (1 - _TOLERANCE)), round(usual * (1 + _TOLERANCE))


MODELS = {
    "yolox-nano": OfficialModel(0.91, 416),
    "yolox-tiny": OfficialModel(5.06, 416),
    "yolox-s": OfficialModel(9.0, 640),
    "yolox-m": OfficialModel(25.3, 640),
    "yolox-l": OfficialModel(54.2, 640),
    "yolox-x": OfficialModel(99.1, 640),
}


@click.command()
@click.argument("model", type=click.Choice(list(MODELS)))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path(), help="Directory to put it into. [default: here]"
)
@click.option(
    "--base-url",
    envvar="PINSTREAM_FETCH_URL",
    default=RELEASE,
    help="Where the files are, for a mirror.  [default: YOLOX's release 0.1.1rc0; environment: PINSTREAM_FETCH_URL]",
)
def fetch(model: str, out: Path, base_url: str) -> None:
    """Download an official YOLOX model as ONNX, once.

    A download that broke off goes on where it was. The file is put into its place only once it is known to be a YOLOX
    export of the right size, and its SHA-256 is the one of the first download on this machine.
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        path = fetch_model(model, out, base_url, console)
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        click.echo("Stopped; run the same command again to go on.", err=True)
        raise SystemExit(130) from None
    click.echo(path)


def fetch_model(name: str, directory: Path, base_url: str, console: Console) -> Path:
    """Downloads a model where it is not there already.

    Args:
        name: A key of MODELS.
        directory: Where to put it; made if it is not there.
        base_url: Where the files are.
        console: Where progress is shown.

    Returns:
        The file, yolox_m.onnx for yolox-m.

    Raises:
        CommandError: It cannot be had, or is not what it should be; nothing is in its place then.
    """
    file = f"{name.replace('-', '_')}.onnx"
    if not base_url.startswith(("http://", "https://")):
        raise CommandError(f"--base-url {base_url}: expected an address that begins with https:// or http://")
    target = directory / file
    record = default_cache_dir() / "fetched" / f"{file}.sha256"
    source = Source(f"{base_url.rstrip('/')}/{file}", *MODELS[name].size_limits)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(record):
            if target.exists():
                _check_sum(target, record, f"{target}, which is there already,", "move it away")
                console.print(f"{target} is there already, and is what was first downloaded.", soft_wrap=True)
                return target
            part = directory / f".{file}.part"
            _download(source, part, console)
            _check(part, name, record, source.url)
            _keep_sum(part, record, file)
            os.replace(part, target)
            discard(part)
    except OSError as error:
        raise CommandError(f"{error.filename or target} cannot be written: {error.strerror or error}") from None
    return target


def _download(source: Source, part: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(source.url.rpartition("/")[2], total=None)
            download(source, part, lambda done, total: bar.update(task, completed=done, total=total))
    except UnreachableError as error:
        raise CommandError(
            f"{error}: downloading needs an internet connection. The built-in model needs none: "
            f"`pinstream demo`, or `pinstream serve --model {built_in(BUILT_IN_MODEL)} "
            f"--labels {built_in(BUILT_IN_LABELS)}`"
        ) from None


def _check(part: Path, name: str, record: Path, url: str) -> None:
    """Looks at what was downloaded; a file that is not right is thrown away."""
    try:
        _check_structure(part, MODELS[name], url)
        if record.exists():
            _check_sum(part, record, url, "if it has changed for a good reason, remove that file")
    except CommandError:
        discard(part)
        raise


def _three(found: Iterable[int]) -> tuple[int, int, int]:
    height, width, classes = map(int, found)
    return height, width, classes


def _check_structure(path: Path, model: OfficialModel, url: str) -> None:
    try:
        height, width, classes = apart(path, recognised_shape, str(path), read=_three)
    except CommandError as error:
        raise CommandError(str(error).replace(str(path), url)) from None
    if (height, width, classes) != (model.input_size, model.input_size, CLASSES):
        raise CommandError(
            f"{url} is a YOLOX export for {height} x {width} pixels and {classes} classes; "
            f"expected {model.input_size} x {model.input_size} and {CLASSES}"
        )


def _check_sum(path: Path, record: Path, what: str, remedy: str) -> None:
    """Holds a file against the SHA-256 of the first download."""
    if not record.exists():
        raise CommandError(f"{what} was not downloaded by this command, so that it cannot be vouched for; {remedy}")
    known, found = record.read_text().split()[0], file_sha256(path)
    if found != known:
        raise CommandError(
            f"{what} has SHA-256 {found}; the first download had {known}, which {record} keeps; {remedy}"
        )


def _keep_sum(path: Path, record: Path, file: str) -> None:
    """Notes the SHA-256 as sha256sum writes it."""
    if not record.exists():
        record.write_text(f"{file_sha256(path)}  {file}\n")
