"""`pinstream serve`: a Triton with the pinstream backend, from one command."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
from rich.text import Text

from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.options import SECONDS, FromHere
from pinstream_cli.serving import serving
from pinstream_cli.supervise import serve_until_stopped
from pinstream_cli.told import lasting_console
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.access import exposures, is_public, read_keys, read_tls
from pinstream_cli.triton.awake import awake
from pinstream_cli.triton.fallback import Fallback
from pinstream_cli.triton.stops import stop_on_signals

__all__ = ["serve", "serving"]

LOOPBACK, ALL_ADDRESSES = "127.0.0.1", "0.0.0.0"
PORT = click.IntRange(1, 65535)
FILE, FROM_HERE = click.Path(path_type=Path), FromHere()


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--model", type=FROM_HERE, help="What to serve: what `pinstream build` made, or any .onnx.")
@click.option("--name", help="Serve --model under this name as a plain model, YOLOX or not.")
@click.option("--labels", type=FROM_HERE, help="Class names of a YOLOX export, one a line. [default: COCO's, if 80]")
@click.option(
    "--model-repository",
    "repositories",
    type=FROM_HERE,
    multiple=True,
    help="Serve a model repository of your own as it is; may be given several times.",
)
@click.option("--tritonserver", type=FROM_HERE, help="The tritonserver to run, instead of the wheel's.")
@click.option("--host", show_default=LOOPBACK, help="Address to listen on.")
@click.option("--public", is_flag=True, help="Listen on all addresses; says what that lets everybody do.")
@click.option("--http-port", type=PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=PORT, default=8002, show_default=True)
@click.option(
    "--tls-cert", type=FILE, help="The server's certificate (PEM): encrypts gRPC, keeps HTTP to this machine."
)
@click.option("--tls-key", type=FILE, help="The certificate's private key (PEM).")
@click.option("--tls-client-ca", type=FILE, help="Let in only clients with a certificate of this authority (PEM).")
@click.option("--api-key-file", type=FILE, help="Let in only clients that send the key in this file.")
@click.option("--admin-key-file", type=FILE, help="Let those who send this key load models and change trace settings.")
@click.option(
    "--allow-client-shm",
    is_flag=True,
    help="Let clients of this machine hand over shared memory; they can end the server with it.",
)
@click.option(
    "--verify", is_flag=True, help="Load only what a model.json vouches for and nobody else can write (VERIFY)."
)
@click.option(
    "--startup-timeout",
    default=180.0,
    show_default=True,
    type=SECONDS,
    help="Seconds until every model must be ready.",
)
@click.option("--restart", is_flag=True, help="Start again when the server, or the process of a model, has died.")
@click.option(
    "--awake", "keep_awake", is_flag=True, help="Let no core sleep: single requests are answered sooner; takes power."
)
@click.option("-v", "--verbose", is_flag=True, help="Show Triton's whole log, not only its warnings and errors.")
@click.argument("triton_arguments", nargs=-1, type=click.UNPROCESSED)
def serve(
    model: Path | None,
    name: str | None,
    labels: Path | None,
    repositories: tuple[Path, ...],
    tritonserver: Path | None,
    host: str | None,
    public: bool,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    api_key_file: Path | None,
    admin_key_file: Path | None,
    allow_client_shm: bool,
    verify: bool,
    startup_timeout: float,
    restart: bool,
    keep_awake: bool,
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
    pinstream serve --model built/ --public --tls-cert server.pem --tls-key server.key --api-key-file key
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    console = lasting_console()
    # What is put together for Triton is nobody else's to write; VERIFY looks at it.
    os.umask(0o022 | os.umask(0o022))
    stop_on_signals()
    try:
        address = _address(host, public)
        access = Access(
            read_tls(tls_cert, tls_key, tls_client_ca),
            *read_keys(api_key_file, admin_key_file),
            allow_client_shm,
            # A key or a certificate says that not everybody who gets here is trusted.
            control=_wants_control(triton_arguments)
            and not (is_public(address) or tls_cert is not None or api_key_file is not None),
        )
        endpoints = Endpoints(address, http_port, grpc_port, metrics_port, LOOPBACK if access.tls else "")
        for line in exposures(address, access, triton_arguments):
            console.print(Text("PUBLIC", "red bold"), line, soft_wrap=True)
        fallback = Fallback(repositories, triton_arguments)
        start = partial(
            serving,
            model,
            name=name,
            labels=labels,
            repositories=repositories,
            tritonserver=tritonserver,
            endpoints=endpoints,
            extra=triton_arguments,
            access=access,
            fallback=fallback,
            verify=verify,
            startup_timeout_s=startup_timeout,
            console=console,
            verbose=verbose,
        )
        with awake() if keep_awake else nullcontext():
            serve_until_stopped(
                start, partial(_announce, console, endpoints, access), fallback, console, restart=restart
            )
    except KeyboardInterrupt:
        console.print("Stopped.")
    except CommandError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def _address(host: str | None, public: bool) -> str:
    """Where to listen, without the brackets that IPv6 has in URLs.

    Raises:
        CommandError: Two addresses are given, or an empty one.
    """
    if host is None:
        return ALL_ADDRESSES if public else LOOPBACK
    if public:
        raise CommandError(f"--public listens on all addresses, and --host on {host or 'none'}; give one of the two")
    if not host.strip("[]"):
        raise CommandError(f"--host is empty; name an address, or leave it out for {LOOPBACK}")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _wants_control(arguments: Sequence[str]) -> bool:
    """Whether models are to be loaded and unloaded while the server runs: said by Triton's own option."""
    return any("explicit" in argument for argument in arguments if argument.startswith(("--model-control", "explicit")))


def _announce(console: Console, endpoints: Endpoints, access: Access, models: Collection[str]) -> None:
    console.print(Text("Ready.", "bold"))
    scheme = "grpcs://" if access.tls else ""
    console.print(f"  gRPC     {scheme}{endpoints.grpc_url}")
    console.print(f"  HTTP     http://{endpoints.http_url}")
    console.print(f"  metrics  http://{endpoints.metrics_url}/metrics")
    # Only the YOLOX service answers it.
    command = f"pinstream detect IMAGE -u {scheme}{endpoints.grpc_url}{_way_in(access)}"
    hint = f"Try:  {command}      " if "yolox" in models else ""
    console.print(f"{hint}Stop with Ctrl-C.", soft_wrap=True)


def _way_in(access: Access) -> str:
    """The options that a client needs to be let in."""
    certificate = " --tls-cert FILE --tls-key FILE" if access.tls and access.tls.client_ca else ""
    return certificate + (" --api-key-file FILE" if access.api_key else "")
