"""Encryption, client certificates, headers and tokens, with real certificates and a real server's own checks."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pinstream_client import TLS, AccessDenied, AsyncDetector, Detector, InvalidURL, Model, ServerUnreachable
from pinstream_client.yolox import ONE_PIXEL
from tests.network import closed_port
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running, running
from tests.toxic import toxic_proxy


@dataclass(frozen=True)
class Certificates:
    """Files of an authority of our own, and of a server and a client that it vouches for."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return Certificates(
        *(directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )


@pytest.fixture(scope="module")
def guarded(tiny_service: Path, certificates: Certificates) -> Iterator[Running]:
    """A server that speaks encrypted gRPC with clients it knows, and asks for a header with every inference."""
    with running(
        tiny_service,
        extra=[
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={certificates.server}",
            f"--grpc-server-key={certificates.server_key}",
            f"--grpc-root-cert={certificates.ca}",
            "--grpc-restricted-protocol=inference:infer-key=secret",
            "--http-restricted-api=inference:infer-key=secret",
        ],
    ) as server:
        yield server


def test_grpc_encrypted_with_a_client_certificate_and_a_header(
    guarded: Running, certificates: Certificates, noises: list[Shown]
) -> None:
    tls = TLS(certificates.ca, certificates.client, certificates.client_key)
    headers = {"triton-grpc-protocol-infer-key": "secret"}
    url = f"grpcs://{guarded.grpc_url}"

    async def run() -> None:
        async with AsyncDetector(url, timeout=TIMEOUT_S, tls=tls, headers=headers) as detector:
            assert same(await detector.detect(noises[0].pixels, **LOOSE), noises[0].found)

    with Detector(url, timeout=TIMEOUT_S, tls=tls, headers=headers) as detector:
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
    asyncio.run(run())
    with (
        Detector(url, timeout=TIMEOUT_S, tls=tls) as detector,
        pytest.raises(AccessDenied, match=r"restricted.*infer-key"),
    ):
        detector.detect(noises[0].pixels)
    for wrong in (True, TLS(certificates.ca)):
        with Detector(url, timeout=10, tls=wrong) as detector, pytest.raises(ServerUnreachable):
            detector.detect(noises[0].pixels)


def test_http_headers_are_asked_for_anew_and_tokens_sent(guarded: Running, noises: list[Shown]) -> None:
    keys = itertools.chain(["wrong"], itertools.repeat("secret"))
    with Model(
        f"http://{guarded.http_url}", "yolox", timeout=TIMEOUT_S, headers=lambda: {"infer-key": next(keys)}
    ) as model:
        assert model.inputs["image"].dtype == "BYTES"  # the first of the keys; metadata is free for all
        image = noises[0].found
        assert image is not None
        assert model.infer({"image": [[ONE_PIXEL]]}, outputs=["class_names"]).keys() == {"class_names"}
    with (
        Detector(f"http://{guarded.http_url}", timeout=TIMEOUT_S, headers={"Infer-Key": "no"}) as detector,
        pytest.raises(AccessDenied, match="restricted"),
    ):
        detector.detect(noises[0].pixels)


def test_http_encrypted(tiny: Running, certificates: Certificates, noises: list[Shown]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED
    tls = TLS(certificates.ca, certificates.client, certificates.client_key)
    with toxic_proxy(tiny.http_url, context) as proxy:
        url = f"https://{proxy.netloc}"

        async def run() -> None:
            async with AsyncDetector(url, timeout=TIMEOUT_S, tls=tls) as detector:
                assert same(await detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
            async with AsyncDetector(url, timeout=TIMEOUT_S) as detector:
                with pytest.raises(ServerUnreachable, match="certificate"):
                    await detector.detect(noises[0].pixels)

        with Detector(url, timeout=TIMEOUT_S, tls=tls, in_flight=4) as detector:
            found = detector.detect([one.pixels for one in noises], **LOOSE)
            assert all(same(left, one.found) for left, one in zip(found, noises, strict=True))
        with Detector(url, timeout=TIMEOUT_S) as detector, pytest.raises(ServerUnreachable, match="certificate"):
            detector.detect(noises[0].pixels)
        asyncio.run(run())
        proxy.stalled = True
        with Detector(url, timeout=0.5, tls=tls) as detector, pytest.raises(TimeoutError):
            detector.detect(noises[0].pixels)


@pytest.mark.parametrize("tls", [TLS("no-such.pem"), TLS(__file__)])
def test_tls_file_that_cannot_be_used_is_named(tls: TLS) -> None:
    with pytest.raises(InvalidURL, match=r"no-such.pem|test_security.py"):
        Detector("https://localhost", tls=tls)


def test_token_is_sent_and_asked_for_anew(tiny: Running, protocol: str, noises: list[Shown]) -> None:
    asked = itertools.count()
    with Detector(url_of(tiny, protocol), timeout=TIMEOUT_S, token=lambda: f"token-{next(asked)}") as detector:
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
        assert next(asked) >= 3  # metadata, labels, image


def test_a_proxy_of_the_environment_is_not_asked_the_way_to_this_machine(
    tiny_url: str, noises: list[Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as nowhere:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://{nowhere}")
        with Detector(tiny_url, timeout=TIMEOUT_S) as detector:
            assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)

        async def run() -> None:
            async with AsyncDetector(tiny_url, timeout=TIMEOUT_S) as detector:
                assert same(await detector.detect(noises[0].pixels, **LOOSE), noises[0].found)

        asyncio.run(run())
