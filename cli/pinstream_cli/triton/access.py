"""Who may do what: encryption, keys, and what is closed to everybody.

Triton has no users. It can ask for a header in front of groups of its calls ("restricted" protocols), which is made use
of in two ways: with a key that clients are given, and with one that nobody is, which closes the group. Its gRPC speaks
TLS; its HTTP and its metrics do not.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import ssl
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.errors import CommandError
from pinstream_cli.named_files import read_named
from pinstream_cli.triton.arguments import values_of

# Triton's groups of calls. Health stays open: probes have no keys, and it tells no more than that something is there.
INFERENCE = ("inference", "metadata", "model-config", "statistics")
# What is logged stays as it is for everybody: the watchdog reads there that a model is lost.
MODELS, TRACE, LOGGING = ("model-repository",), ("trace",), ("logging",)
CONTROL = (*MODELS, *TRACE)
TLS_OPTIONS = ("--grpc-use-ssl", "--grpc-use-ssl-mutual", "--grpc-server-cert", "--grpc-server-key", "--grpc-root-cert")
CLIENT_SHM = ("shared-memory",)
API_HEADER, ADMIN_HEADER, CLOSED_HEADER = "pinstream-key", "pinstream-admin-key", "pinstream-closed"
# Triton puts this before the header's name over gRPC.
GRPC_PREFIX = "triton-grpc-protocol-"
KEY_OPTIONS = {API_HEADER: "--api-key-file", ADMIN_HEADER: "--admin-key-file"}
RESTRICTIONS = ("--grpc-restricted-protocol", "--http-restricted-api")
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Tls:
    """The files of encrypted gRPC, PEM.

    Attributes:
        cert: The server's certificate, with those between it and the root.
        key: Its private key.
        client_ca: Certificates that sign those of clients; without it clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Access:
    """What a server lets in.

    Attributes:
        tls: Encrypts gRPC; HTTP and metrics then stay on this machine.
        api_key: Asked of everybody who infers; empty for nobody.
        admin_key: Asked of everybody who loads models or changes what is traced; empty closes that, but for `control`.
        client_shm: Whether clients may have the server read and write shared memory of this machine.
        control: Whether models may be loaded without a key.
    """

    tls: Tls | None = None
    api_key: str = ""
    admin_key: str = ""
    client_shm: bool = False
    control: bool = False

    def arguments(self, given: Sequence[str] = ()) -> list[str]:
        """As tritonserver's command line has it.

        Args:
            given: The user's own arguments for tritonserver. Groups of calls that they restrict are left to them.

        Raises:
            CommandError: They restrict a group that a key is asked for, or say otherwise of encryption.
        """
        for option in TLS_OPTIONS:
            if self.tls is not None and values_of(option, given):
                raise CommandError(
                    f"{option} would change what --tls-cert, --tls-key and --tls-client-ca say; leave it out"
                )
        rules = [f"{option}={rule}" for option in RESTRICTIONS for rule in self._rules(option, given)]
        return [*self._encryption(), *rules]

    def leaves_open(self, group: str, given: Sequence[str] = ()) -> bool:
        """Whether everybody who reaches the server may make the calls of a group, over gRPC or HTTP.

        Args:
            group: As Triton calls it.
            given: The user's own arguments for tritonserver.

        Raises:
            CommandError: They restrict a group that a key is asked for.
        """
        if self.tls is not None and self.tls.client_ca is not None:
            return False
        # Beside TLS, HTTP is for this machine alone.
        reached = RESTRICTIONS if self.tls is None else RESTRICTIONS[:1]
        return any(
            group not in _groups_of((*self._rules(option, given), *values_of(option, given))) for option in reached
        )

    def _encryption(self) -> list[str]:
        if self.tls is None:
            return []
        files = [f"--grpc-server-cert={self.tls.cert}", f"--grpc-server-key={self.tls.key}"]
        if self.tls.client_ca is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.tls.client_ca}"]

    def _rules(self, option: str, given: Sequence[str]) -> list[str]:
        """Groups, a header's name and its value, as Triton writes them: none twice, which Triton would refuse."""
        theirs = _groups_of(values_of(option, given))
        rules = []
        for groups, header, value in self._restrictions():
            both = [group for group in groups if group in theirs]
            if both and header in KEY_OPTIONS:
                raise CommandError(
                    f"{option} restricts {', '.join(both)}, for which {KEY_OPTIONS[header]} asks for a key; "
                    f"leave out one of the two, or {', '.join(both)} in {option}"
                )
            if rest := [group for group in groups if group not in theirs]:
                rules.append(f"{','.join(rest)}:{header}={value}")
        return rules

    def _restrictions(self) -> list[tuple[Sequence[str], str, str]]:
        """Groups of calls, the header that is asked for and its value."""
        closed: list[str] = [*LOGGING]
        rules: list[tuple[Sequence[str], str, str]] = []
        if self.api_key:
            with_key = (*INFERENCE, *CLIENT_SHM) if self.client_shm else INFERENCE
            rules.append((with_key, API_HEADER, self.api_key))
        if not self.client_shm:
            closed += CLIENT_SHM
        if self.admin_key:
            rules.append((CONTROL, ADMIN_HEADER, self.admin_key))
        else:
            closed += TRACE if self.control else CONTROL
        rules.append((closed, CLOSED_HEADER, secrets.token_urlsafe(32)))
        return rules


def _groups_of(rules: Sequence[str]) -> set[str]:
    """The groups of calls that rules as Triton writes them are for."""
    return {group.strip() for rule in rules for group in rule.partition(":")[0].split(",")}


def is_public(host: str) -> bool:
    """Whether others than this machine can reach a server on `host`."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def exposures(host: str, access: Access, given: Sequence[str] = ()) -> list[str]:
    """What a server on `host` lets everybody do who reaches it, a line each; none for this machine alone.

    Args:
        host: Where it listens.
        access: What it lets in.
        given: The user's own arguments for tritonserver.

    Raises:
        CommandError: They restrict a group that a key is asked for.
    """
    if not is_public(host):
        return []
    lines = []
    if access.tls is None:
        lines.append("nothing is encrypted: pictures, answers and keys can be read on the way (--tls-cert, --tls-key)")
    if access.leaves_open("inference", given):
        lines.append("everybody can infer (--api-key-file, or --tls-client-ca for gRPC)")
    if access.leaves_open("model-repository", given):
        lines.append("everybody can load, replace and unload models, which is running code here (--admin-key-file)")
    if access.leaves_open("shared-memory", given):
        lines.append("everybody can have the server read and write shared memory of this machine (--api-key-file)")
    if access.tls is None:
        lines.append("everybody can read the metrics")
    return lines


def read_key(option: str, path: Path | None) -> str:
    """The key in a file: its one line.

    Args:
        option: The option that names the file, for the message.
        path: The file; None for no key.

    Raises:
        CommandError: It cannot be read, others can read it, or its content is no key.
    """
    if path is None:
        return ""
    try:
        key = read_named(path).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{option} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    _check_private(option, path)
    if len(key) < SHORTEST_KEY or not all(33 <= ord(letter) <= 126 for letter in key):
        raise CommandError(
            f"{option} {path} holds no key: expected one line of at least {SHORTEST_KEY} printable letters without "
            "spaces; make one with `openssl rand -hex 32`"
        )
    return key


def read_keys(api: Path | None, admin: Path | None) -> tuple[str, str]:
    """The keys for inference and for control.

    Raises:
        CommandError: As `read_key`, or they are the same.
    """
    keys = read_key("--api-key-file", api), read_key("--admin-key-file", admin)
    if keys[0] and keys[0] == keys[1]:
        raise CommandError(
            f"--api-key-file {api} and --admin-key-file {admin} hold the same key: everybody who may infer could load "
            "models, which is running code here; make another one with `openssl rand -hex 32`"
        )
    return keys


def read_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """The files of encrypted gRPC; None where none is named.

    Raises:
        CommandError: One of the pair is missing, a file cannot be read, or is not what it is said to be.
    """
    if cert is None and key is None:
        if client_ca is not None:
            raise CommandError("--tls-client-ca needs the server's own --tls-cert and --tls-key beside it")
        return None
    if cert is None or key is None:
        raise CommandError("--tls-cert and --tls-key belong together; give both")
    for option, path in (("--tls-cert", cert), ("--tls-key", key), ("--tls-client-ca", client_ca)):
        # Not Path's, which raises where a directory on the way is closed.
        if path is not None and not (os.path.isfile(path) and os.access(path, os.R_OK)):
            raise CommandError(
                f"{option} {path} is not a file that can be read; name one that the server's user may read"
            )
    _check_private("--tls-key", key)
    _check_tls(cert, key, client_ca)
    return Tls(cert.resolve(), key.resolve(), client_ca.resolve() if client_ca else None)


def _check_private(option: str, path: Path) -> None:
    """See that nobody else reads a key.

    A key that root keeps for this user may be readable by its group: that is how Debian's `ssl-cert` and Kubernetes'
    secrets hand them over (mode 640, 440). Who is root, or owns the file, has no need of that.
    """
    status = path.stat()
    kept_by_root = status.st_uid == 0 != os.geteuid()
    others = stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if kept_by_root else stat.S_IRWXG)
    if status.st_mode & others:
        raise CommandError(f"{option} {path} can be read by others (mode {status.st_mode & 0o777:o}); chmod 600 {path}")


def _check_tls(cert: Path, key: Path, client_ca: Path | None) -> None:
    """See that the files are what they are said to be: Triton would call its port taken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise CommandError(
            f"--tls-cert {cert} and --tls-key {key} are not a certificate and its private key in PEM, without a "
            f"passphrase: {error}"
        ) from None
    # Nothing public of the ssl module reads a certificate that is no authority's.
    _check_dates("--tls-cert", cert, [ssl._ssl._test_decode_cert(cert)])  # type: ignore[attr-defined]
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise CommandError(f"--tls-client-ca {client_ca} holds no certificate in PEM: {error}") from None
        _check_dates("--tls-client-ca", client_ca, context.get_ca_certs())


def _check_dates(option: str, path: Path, certificates: Sequence[Mapping[str, Any]]) -> None:
    """See that one of a file's certificates is of today; there may be none that Python can read."""
    now, found = time.time(), ""
    for certificate in certificates:
        start, end = str(certificate["notBefore"]), str(certificate["notAfter"])
        if now < ssl.cert_time_to_seconds(start):
            found = f"is not valid before {start}; set this machine's clock if that has passed, or wait"
        elif now > ssl.cert_time_to_seconds(end):
            found = f"has expired ({end}); renew it"
        else:
            return
    if found:
        raise CommandError(f"{option} {path} {found}: no client would get through")
