"""Real certificates for the tests, made with the openssl command."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, PEM files."""

    cert: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    if shutil.which("openssl") is None and not os.environ.get("PINSTREAM_REQUIRE_OPENSSL"):
        pytest.skip("needs the openssl command, to make certificates")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(directory: Path, name: str, days: int = 2) -> Certificate:
    """A certificate that signs others, good for some days."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)),
        *("-subj", f"/CN={name}", "-keyout", made.key, "-out", made.cert),
    )
    return made


def signed(directory: Path, name: str, by: Certificate) -> Certificate:
    """A certificate for 127.0.0.1 and localhost, signed by an authority."""
    made, request = Certificate(directory / f"{name}.pem", directory / f"{name}.key"), directory / f"{name}.csr"
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", made.key, "-out", request),
    )
    extensions = directory / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(
        *("x509", "-req", "-in", request, "-CA", by.cert, "-CAkey", by.key, "-CAcreateserial", "-days", "2"),
        *("-extfile", extensions, "-out", made.cert),
    )
    return made
