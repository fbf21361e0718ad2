"""The command line of `pinstream detect`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, get_args

import click

from pinstream_cli.detect import formats
from pinstream_cli.detect.connection import connection, connection_options, told
from pinstream_cli.detect.options import server_options, threshold_options
from pinstream_cli.detect.report import FORMATS
from pinstream_cli.detect.session import Wishes, detect_all
from pinstream_cli.detect.sources import IMAGE_SUFFIXES
from pinstream_cli.detect.video import VIDEO_SUFFIXES
from pinstream_cli.errors import CommandError
from pinstream_client import Detector, PinstreamError
from pinstream_client.service import Transport

PATH = click.Path(path_type=Path)


@click.command(
    epilog="Exit codes: 0 all done, 1 some images failed, 2 no usable server or a wrong command line, 130 interrupted."
)
@click.argument("images", nargs=-1, metavar="IMAGE...", type=click.Path(allow_dash=True))
@server_options()
@connection_options
@threshold_options
@click.option("-o", "--out", type=PATH, help="Write annotated pictures (PNG) and videos (MP4) into this directory.")
@click.option("--save", type=PATH, help="Write results into FILE.jsonl, FILE.csv or FILE.json (COCO).")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="What is printed. [default: table; summary with --save, --watch, videos and many images]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--watch", type=PATH, metavar="DIR", help="Detect on each image that appears in DIR, until Ctrl-C.")
@click.option("--restart", is_flag=True, help="Begin anew where an interrupted run could be resumed.")
@click.option(
    "--in-flight", default=8, show_default=True, type=click.IntRange(1, 256), help="Images on their way at once."
)
@click.option(
    "--transport",
    default="encoded",
    show_default=True,
    type=click.Choice(get_args(Transport)),
    help="How images travel: as files; letterboxed here, as tensors; those in memory shared with the server.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say a line about each image.")
def detect(
    images: tuple[str, ...],
    url: str,
    protocol: Any,
    model: str,
    timeout: float,
    conf: float | None,
    iou: float | None,
    max_det: int | None,
    out: Path | None,
    save: Path | None,
    format_: str | None,
    as_json: bool,
    watch: Path | None,
    restart: bool,
    in_flight: int,
    transport: Any,
    verbose: bool,
    **how: Any,
) -> None:
    """Find objects in images through a running server.

    IMAGE is a file, a directory, a quoted pattern ('shots/**/*.jpg'), a video, the number of a camera, or - for an
    image on standard input. With --out or --save, a run that was interrupted goes on where it stopped when the same
    command is given again.

    \b
    Examples:
      pinstream detect dog.jpg
      pinstream detect dog.jpg -u http://gpu-host:8000 --json
      pinstream detect *.jpg --out annotated --conf 0.4
      pinstream detect shots/ --save found.csv
      pinstream detect shots/ --save coco.json --conf 0.01 --iou 0.65
      pinstream detect street.mp4 --out annotated
      pinstream detect 0 --format jsonl
      curl -s https://example.com/dog.jpg | pinstream detect -
      pinstream detect --watch inbox --format jsonl
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    wishes = Wishes(
        model=model,
        images=images,
        watch=watch,
        out=out,
        save=save,
        format="json" if as_json else format_,
        thresholds={"conf": conf, "iou": iou, "max_det": max_det},
        restart=restart,
        verbose=verbose,
    )
    # A supervisor's SIGTERM ends a run the way Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check(wishes)
        with Detector(
            url, protocol, model=model, timeout=timeout, in_flight=in_flight, transport=transport, **connection(**how)
        ) as detector:
            problems = detect_all(detector, wishes)
    except (PinstreamError, CommandError) as error:
        click.echo(f"error: {told(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    if problems:
        click.echo("\n".join(problems), err=True)
        sys.exit(1)


def _check(wishes: Wishes) -> None:
    """Refuses what cannot be meant, before anything is sent."""
    if not wishes.images and wishes.watch is None:
        raise click.UsageError("Missing argument 'IMAGE...': name an image, a directory, a video, or --watch DIR.")
    if wishes.images and wishes.watch is not None:
        raise click.UsageError("--watch takes no other images: it finds those that are in its directory already.")
    if wishes.watch is not None and not wishes.watch.is_dir():
        raise CommandError(f"--watch {wishes.watch} is not a directory")
    if wishes.save is not None and formats.format_of(wishes.save) is None:
        raise click.UsageError(f"--save {wishes.save} must end in {', '.join(formats.SUFFIXES)} (COCO).")
    if wishes.save is not None and not wishes.save.parent.is_dir():
        raise CommandError(f"cannot write {wishes.save}: there is no directory {wishes.save.parent}")
    if wishes.out is not None and wishes.out.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        raise click.UsageError(f"--out {wishes.out} must be a directory: files in it are called as their sources are.")
