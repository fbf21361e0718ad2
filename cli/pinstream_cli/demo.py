"""`pinstream demo`: the whole round on one image - build, serve, detect, draw, stop."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from pinstream_cli.build import build_service, summary
from pinstream_cli.detect import detect
from pinstream_cli.errors import CommandError
from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints

# What `make demo` uses when it is told nothing; they come with the project.
BUILT_IN = Path(__file__).resolve().parents[2] / "models"
BUILT_IN_MODEL, BUILT_IN_LABELS, BUILT_IN_IMAGE = (
    BUILT_IN / name for name in ("shapes_nano.onnx", "shapes.txt", "demo.jpg")
)

EXAMPLE = "make demo MODEL=yolox_nano.onnx IMAGE=dog.jpg"


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
    console = Console(stderr=True, highlight=False)
    try:
        model, labels = _model(model, labels)
        image = _image(image)
        with tempfile.TemporaryDirectory(prefix="pinstream-demo-") as scratch:
            built = Path(scratch) / "service"
            console.print(f"[bold]1/3 Build[/] the serving graph of {model.name}")
            console.print(summary(build_service(model, built, labels=labels, images=[image])))
            console.print("[bold]2/3 Serve[/] it from Triton")
            with serving(built, endpoints=Endpoints.free(), console=console) as server:
                console.print(f"[bold]3/3 Detect[/] objects in {image.name}")
                context.invoke(detect, images=(image,), url=f"grpc://{server.endpoints.grpc_url}", out=out)
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def _model(model: Path | None, labels: Path | None) -> tuple[Path, Path | None]:
    if model is not None:
        return model, labels
    if not BUILT_IN_MODEL.is_file():
        raise CommandError(f"there is no built-in model yet; name a YOLOX export: {EXAMPLE}")
    return BUILT_IN_MODEL, labels or BUILT_IN_LABELS


def _image(image: Path | None) -> Path:
    chosen = image or BUILT_IN_IMAGE
    if not chosen.is_file():
        raise CommandError(f"no image: {chosen} does not exist; name one: {EXAMPLE}")
    return chosen
