"""`pinstream serve`: a Triton with the pinstream backend, from one command."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from pinstream import sidecar as sidecars
from pinstream_cli.build import build_service
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import (
    Endpoints,
    RunDirectory,
    TritonServer,
    check_arguments,
    check_ports,
    check_shared_memory,
    find_triton,
    leftovers,
)
from pinstream_cli.triton.preflight import gpu_count
from pinstream_cli.triton.server import NO_GPU_NOISE
from pinstream_cli.triton.shared_memory import needs
from pinstream_cli.yolox_graph import is_serving_graph, is_yolox_export

WARNING_OR_ERROR = re.compile(r"^[WEF]\d{4} ")
PORT = click.IntRange(1, 65535)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--model", type=click.Path(path_type=Path), help="What to serve: what `pinstream build` made, or any .onnx."
)
@click.option("--name", help="Serve --model under this name as a plain model, YOLOX or not.")
@click.option(
    "--model-repository",
    "repositories",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Serve a model repository of your own as it is; may be given several times.",
)
@click.option(
    "--tritonserver", type=click.Path(path_type=Path), help="The tritonserver to run, instead of the wheel's."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--http-port", type=PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=PORT, default=8002, show_default=True)
@click.option("--startup-timeout", default=180.0, show_default=True, help="Seconds until every model must be ready.")
@click.option("-v", "--verbose", is_flag=True, help="Show Triton's whole log, not only its warnings and errors.")
@click.argument("triton_arguments", nargs=-1, type=click.UNPROCESSED)
def serve(
    model: Path | None,
    name: str | None,
    repositories: tuple[Path, ...],
    tritonserver: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    startup_timeout: float,
    verbose: bool,
    triton_arguments: tuple[str, ...],
) -> None:
    """Serve models from a real Triton Inference Server until Ctrl-C.

    Arguments that are not listed here go to tritonserver as they are.

    \b
    Examples:
    pinstream serve --model yolox_m.onnx             the YOLOX service: model 'yolox', encoded image in, boxes out
    pinstream serve --model classifier.onnx          any ONNX model, under its file's name
    pinstream serve --model-repository models        your own repository, with backend: "pinstream" in it
    pinstream serve --model built/ --log-verbose=1   more of tritonserver's own arguments
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    console = Console(stderr=True, highlight=False)
    endpoints = Endpoints(host, http_port, grpc_port, metrics_port)
    # A supervisor's SIGTERM ends the service the way Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serving(
            model,
            name=name,
            repositories=repositories,
            tritonserver=tritonserver,
            endpoints=endpoints,
            extra=triton_arguments,
            startup_timeout_s=startup_timeout,
            console=console,
            verbose=verbose,
        ) as server:
            _announce(console, endpoints, server.loaded)
            code = server.wait()
            raise CommandError(f"Triton ended by itself with code {code}; run again with --verbose to see its log")
    except KeyboardInterrupt:
        console.print("Stopped.")
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


@contextlib.contextmanager
def serving(
    model: Path | None,
    *,
    name: str | None = None,
    repositories: Sequence[Path] = (),
    tritonserver: Path | None = None,
    endpoints: Endpoints,
    extra: Sequence[str] = (),
    startup_timeout_s: float = 180.0,
    console: Console,
    verbose: bool = False,
) -> Iterator[TritonServer]:
    """A Triton with every model ready, stopped and cleaned up after on exit.

    Args:
        model: Directory made by `pinstream build`, a YOLOX export, or any ONNX file; None where `repositories` is all.
        name: Serve `model` as a plain model of this name.
        repositories: Model repositories to be served as they are.
        tritonserver: The binary, where it is not to be looked for.
        endpoints: Where to listen.
        extra: More arguments for tritonserver.
        startup_timeout_s: Seconds until every model must be ready.
        console: Where progress is shown.
        verbose: Whether to show Triton's whole log.

    Raises:
        CommandError: The machine, the model or the server is not fit; one line says why and what to do.
    """
    check_arguments(extra)
    if model is None and not repositories:
        raise CommandError("nothing to serve; name a model with --model, or a repository with --model-repository")
    for repository in repositories:
        _check_repository(repository, extra)
    install = find_triton(tritonserver)
    _check_ports(endpoints)
    for path in leftovers.remove():
        console.print(f"Removed {path}, left by a serve that was killed", soft_wrap=True)
    with RunDirectory(install) as run:
        if model is not None:
            _add_model(run, model, name, console)
        served = [*([run.models] if model is not None else []), *repositories]
        _check_shared_memory(served)
        server = TritonServer(
            install,
            run,
            served,
            endpoints,
            extra,
            on_ready=lambda ready, seconds: console.print(f"  {ready:<24} [green]READY[/] {seconds:6.1f} s"),
            on_log=lambda line: _show_log(line, console, verbose),
        )
        console.print(f"Starting {install.binary}", soft_wrap=True)
        try:
            server.start()
            server.wait_ready(startup_timeout_s)
            yield server
        finally:
            began = time.monotonic()
            server.stop()
            console.print(f"Triton has stopped ({time.monotonic() - began:.1f} s).")


def _check_repository(repository: Path, extra: Sequence[str]) -> None:
    if not repository.is_dir():
        raise CommandError(f"--model-repository {repository} is not a directory")
    holds_models = any(entry.is_dir() and not entry.name.startswith(".") for entry in repository.iterdir())
    # With these modes models may come later.
    if not holds_models and not any(argument.startswith("--model-control-mode") for argument in extra):
        raise CommandError(
            f"--model-repository {repository} holds no models; a model is a directory with a config.pbtxt and a "
            'version directory, such as classifier/config.pbtxt (backend: "pinstream") and classifier/1/model.onnx'
        )


def _check_ports(endpoints: Endpoints) -> None:
    ports = {
        "HTTP": ("--http-port", endpoints.http),
        "gRPC": ("--grpc-port", endpoints.grpc),
        "metrics": ("--metrics-port", endpoints.metrics),
    }
    check_ports(endpoints.host, ports)


def _add_model(run: RunDirectory, model: Path, name: str | None, console: Console) -> None:
    """Put `model` into the run's repository: the YOLOX service where it is one, else a plain model."""
    if name is not None and (not name.strip() or "/" in name or name.startswith(".")):
        raise CommandError(
            f"--name {name!r} cannot be a model's name: it becomes a directory; leave out / and leading dots"
        )
    if not model.exists():
        raise CommandError(f"--model {model} does not exist; name an .onnx file or what `pinstream build` made")
    if model.is_dir():
        _add_built(run, model, name)
    elif model.suffix not in (".onnx", ".plan"):
        raise CommandError(f"--model {model} is neither an .onnx nor a .plan file, nor what `pinstream build` made")
    elif model.suffix == ".plan":
        run.add_model(name or model.stem, [model])
    elif name is None and is_yolox_export(model):
        console.print(f"{model.name} is a YOLOX export: building its serving graph")
        build_service(model, run.path / "built")
        run.add_yolox_service(_files(run.path / "built"))
    elif name is None and is_serving_graph(model):
        if not (model.parent / sidecars.FILE_NAME).is_file():
            raise CommandError(
                f"--model {model} is a serving graph without its {sidecars.FILE_NAME}; keep the two together"
            )
        run.add_yolox_service([model, model.parent / sidecars.FILE_NAME])
    else:
        run.add_model(name or model.stem, [model])


def _files(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.iterdir()) if file.is_file()]


def _add_built(run: RunDirectory, directory: Path, name: str | None) -> None:
    """What `pinstream build` made: the service where its sidecar says that it is YOLOX, else a plain model."""
    try:
        sidecar = sidecars.read(directory / sidecars.FILE_NAME)
    except sidecars.SidecarError as error:
        raise CommandError(f"--model {error}; make the directory with `pinstream build`") from error
    if name is None and "yolox" in sidecar.sections:
        run.add_yolox_service(_files(directory))
    else:
        run.add_model(name or directory.resolve().name, _files(directory))


def _check_shared_memory(repositories: Sequence[Path]) -> None:
    models = needs(repositories, gpu_count())
    check_shared_memory(sum(model.needed for model in models), "; ".join(map(str, models)))


def _show_log(line: str, console: Console, verbose: bool) -> None:
    if verbose or (WARNING_OR_ERROR.match(line) and not NO_GPU_NOISE.search(line)):
        console.print(line, markup=False, soft_wrap=True, style="dim")


def _announce(console: Console, endpoints: Endpoints, models: Collection[str]) -> None:
    console.print("[bold]Ready.[/]")
    console.print(f"  gRPC     {endpoints.grpc_url}")
    console.print(f"  HTTP     http://{endpoints.http_url}")
    console.print(f"  metrics  http://{endpoints.metrics_url}/metrics")
    # Only the YOLOX service answers it.
    hint = f"Try:  pinstream detect IMAGE -u {endpoints.grpc_url}      " if "yolox" in models else ""
    console.print(f"{hint}Stop with Ctrl-C.")
