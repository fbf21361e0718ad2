"""`pinstream demo`: the whole round on one image - build, serve, detect, draw, stop."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.text import Text

from pinstream_cli.build import summary
from pinstream_cli.console import Console
from pinstream_cli.detect import detect
from pinstream_cli.errors import CommandError
from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints
from pinstream_cli.yolox_service import build_apart

# What the demo uses when it is told nothing; all three come with the project.
BUILT_IN_MODEL, BUILT_IN_LABELS, BUILT_IN_IMAGE = "shapes_nano.onnx", "shapes.txt", "demo.jpg"


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="A YOLOX export (.onnx). [default: the built-in model]")
@click.option("--image", type=click.Path(path_type=Path), help="A picture. [default: the built-in one]")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Where results go."
)
@click.pass_context
def demo(context: click.Context, model: Path | None, image: Path | None, labels: Path | None, out: Path) -> None:
    """Build a YOLOX model, serve it from a real Triton, detect on one image, and stop again."""
    console = Console(stderr=True)
    try:
        model, labels = _model(model, labels)
        image = _image(image)
        with tempfile.TemporaryDirectory(prefix="pinstream-demo-") as scratch:
            built = Path(scratch) / "service"
            console.print(Text("1/3 Build", "bold"), f"the serving graph of {model.name}")
            console.print(summary(build_apart(model, built, labels=labels, images=[image])))
            console.print(Text("2/3 Serve", "bold"), "it from Triton")
            with serving(built, endpoints=Endpoints.free(), console=console) as server:
                console.print(Text("3/3 Detect", "bold"), f"objects in {image.name}")
                context.invoke(detect, images=(str(image),), url=f"grpc://{server.endpoints.grpc_url}", out=out)
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def _model(model: Path | None, labels: Path | None) -> tuple[Path, Path | None]:
    if model is not None:
        return model, labels
    return built_in(BUILT_IN_MODEL), labels or built_in(BUILT_IN_LABELS)


def _image(image: Path | None) -> Path:
    chosen = image or built_in(BUILT_IN_IMAGE)
    if not chosen.is_file():
        what = "is not a file" if chosen.exists() else "does not exist"
        raise CommandError(f"no image: {chosen} {what}; name a JPEG, PNG, BMP or WebP file")
    return chosen


def built_in(name: str) -> Path:
    """A file of the built-in model: in `models/` of a checkout, inside the packages once installed.

    Raises:
        CommandError: It is not there.
    """
    here = Path(__file__).resolve().parent
    for directory in (here / "models", here.parents[1] / "models"):
        if (directory / name).is_file():
            return directory / name
    raise CommandError(f"the built-in {name} is missing from this installation ({here}); install pinstream again")
