"""How to get in: headers, the key of a closed server, the files of an encrypted connection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pinstream_cli.options import Command, together
from pinstream_client import TLS, AccessDenied

FILE = click.Path(path_type=Path, dir_okay=False)


def connection_options(command: Command) -> Command:
    """Adds the options; the command hands what comes of them, as keyword arguments, to `connection`."""
    return together(*_OPTIONS)(command)


def connection(
    headers: Sequence[tuple[str, str]],
    api_key_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> dict[str, Any]:
    """What `Detector` and `AsyncDetector` take of it.

    Raises:
        CommandError: The key cannot be read, or others can read it.
        click.UsageError: One of two files that belong together is missing.
    """
    given = dict(headers)
    if api_key_file is not None:
        from pinstream_cli.triton.access import API_HEADER, GRPC_PREFIX, read_key  # with all that servers need

        key = read_key("--api-key-file", api_key_file)
        # One name for each protocol; the other one does no harm.
        given |= {API_HEADER: key, f"{GRPC_PREFIX}{API_HEADER}": key}
    files = (tls_ca, tls_cert, tls_key)
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together; give both.")
    return {"headers": given or None, "tls": TLS(*files) if any(files) else False}


def told(error: Exception) -> str:
    """What the command line says of an error: beside a refusal, the options that get in."""
    return f"{error} (--api-key-file FILE, or -H NAME:VALUE)" if isinstance(error, AccessDenied) else str(error)


def _read_headers(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is no header: expected 'NAME: VALUE'.")
        pairs.append((name.strip(), value.strip()))
    return pairs


_OPTIONS = (
    click.option(
        "-H",
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        callback=_read_headers,
        help="Sent with every request; may be given again.",
    ),
    click.option("--api-key-file", type=FILE, help="The key of a server that asks for one."),
    click.option("--tls-ca", type=FILE, help="Encrypt, and trust these authorities (PEM)."),
    click.option("--tls-cert", type=FILE, help="Encrypt, and show this certificate (PEM)."),
    click.option("--tls-key", type=FILE, help="Its private key (PEM)."),
)
