"""deploy/nginx.conf in front of a real Triton: who gets through to it, and with what."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import tritonclient.http as triton_http

from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.access import API_HEADER
from pinstream_client import TLS, AccessDenied, AsyncDetector, Detector, ServerUnreachable
from tests import certificates
from tests.certificates import Certificate
from tests.server.client.conftest import LOOSE, ROOT, TIMEOUT_S, Shown, same
from tests.server.running import Running, running

KEY = "an-api-key-for-the-tests"
RECIPE = ROOT / "deploy" / "nginx.conf"
INFER = "/v2/models/yolox/infer"
# What ends Triton 2.51 where it is called a form.
FORM = b"a=1&" * (1 << 20)


@dataclass(frozen=True)
class Proxy:
    """nginx, and what its clients need.

    Attributes:
        port: Where it listens.
        ca: Vouches for it and for its clients.
        client: A client's certificate.
    """

    port: int
    ca: Certificate
    client: Certificate

    @property
    def url(self) -> str:
        """What the client is given."""
        return f"https://localhost:{self.port}"

    @property
    def tls(self) -> TLS:
        """The files of a client that is let in."""
        return TLS(self.ca.cert, self.client.cert, self.client.key)

    def connect(self) -> http.client.HTTPSConnection:
        """A connection of a client that is let in, for what ours would not send."""
        context = ssl.create_default_context(cafile=str(self.ca.cert))
        context.load_cert_chain(self.client.cert, self.client.key)
        return http.client.HTTPSConnection("localhost", self.port, timeout=TIMEOUT_S, context=context)

    def send(self, method: str, path: str, body: bytes = b"", *headers: tuple[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer to a request whose headers may be there twice."""
        with contextlib.closing(self.connect()) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for header in (*headers, (API_HEADER, KEY), ("Content-Length", str(len(body)))):
                connection.putheader(*header)
            connection.endheaders()
            # A request that is refused may be answered before it is read.
            with contextlib.suppress(ConnectionError):
                connection.send(body)
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def proxy(directory: Path, endpoints: Endpoints, *, mutual: bool = True) -> Iterator[Proxy]:
    """The recipe's nginx, in front of a server's HTTP."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None and not os.environ.get("PINSTREAM_REQUIRE_NGINX"):
        pytest.skip("needs nginx (Debian: nginx-light)")
    assert program is not None
    tls = directory / "tls"
    tls.mkdir()
    ca = certificates.authority(tls, "clients")
    certificates.signed(tls, "server", ca)
    client = certificates.signed(tls, "client", ca)
    port = Endpoints.free().http
    changes = {"listen 8443 ssl;": f"listen {port} ssl;", "server 127.0.0.1:8000;": f"server {endpoints.http_url};"}
    if not mutual:
        changes.update(dict.fromkeys(("ssl_client_certificate tls/clients.pem;", "ssl_verify_client on;"), ""))
    text = RECIPE.read_text()
    for found, other in changes.items():
        assert text.count(found) == 1, found
        text = text.replace(found, other)
    (directory / "nginx.conf").write_text(text)
    # Root's workers are nobody's, who may not look into root's temporary directory.
    settings = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
    command = [program, "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Proxy(port, ca, client)
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture(scope="module")
def keyed(tiny_service: Path) -> Iterator[Running]:
    """A server that asks for a key."""
    with running(tiny_service, access=Access(api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(keyed: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before it that asks for a certificate."""
    with proxy(tmp_path_factory.mktemp("proxy"), keyed.endpoints) as before:
        yield before


def headers(key: str = KEY) -> Mapping[str, str]:
    return {API_HEADER: key}


def test_a_client_with_a_certificate_and_the_key_is_answered(guarded: Proxy, noises: Sequence[Shown]) -> None:
    pictures = [one.pixels for one in noises]

    async def run() -> None:
        async with AsyncDetector(guarded.url, timeout=TIMEOUT_S, tls=guarded.tls, headers=headers()) as detector:
            assert same(await detector.detect(pictures[0], **LOOSE), noises[0].found)

    with Detector(guarded.url, timeout=TIMEOUT_S, tls=guarded.tls, headers=headers(), in_flight=4) as detector:
        for found, one in zip(detector.detect(pictures, **LOOSE), noises, strict=True):
            assert same(found, one.found)
    asyncio.run(run())


def test_nobody_else_is(guarded: Proxy, noises: Sequence[Shown], tmp_path: Path) -> None:
    stranger = certificates.signed(tmp_path, "stranger", certificates.authority(tmp_path, "other"))
    for tls in (TLS(guarded.ca.cert), TLS(guarded.ca.cert, stranger.cert, stranger.key), True):
        with (
            Detector(guarded.url, timeout=10, tls=tls, headers=headers()) as detector,
            pytest.raises((AccessDenied, ServerUnreachable), match="certificate"),
        ):
            detector.detect(noises[0].pixels)
    with (
        Detector(guarded.url, timeout=TIMEOUT_S, tls=guarded.tls, headers=headers("another")) as detector,
        pytest.raises(AccessDenied, match="restricted"),
    ):
        detector.detect(noises[0].pixels)


def test_without_mutual_tls_the_key_decides(keyed: Running, noises: Sequence[Shown], tmp_path: Path) -> None:
    with proxy(tmp_path, keyed.endpoints, mutual=False) as before:
        tls = TLS(before.ca.cert)
        with Detector(before.url, timeout=TIMEOUT_S, tls=tls, headers=headers()) as detector:
            assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
        with Detector(before.url, timeout=TIMEOUT_S, tls=tls) as detector, pytest.raises(AccessDenied):
            detector.detect(noises[0].pixels)


def test_what_triton_does_not_survive_does_not_get_there(
    guarded: Proxy, keyed: Running, noises: Sequence[Shown]
) -> None:
    form, json = ("Content-Type", "application/x-www-form-urlencoded"), ("Content-Type", "application/json")
    for types in ((form,), (form, json), (("Content-Type", "Application/X-WWW-Form-urlencoded; a=b"),)):
        status, text = guarded.send("POST", INFER, FORM, *types)
        assert status in (400, 415), text
    # Of two headers nginx goes by one, and that is the one that Triton gets.
    assert guarded.send("POST", INFER, FORM, json, form)[0] >= 400
    status, text = guarded.send("POST", INFER, gzip.compress(bytes(1 << 20)), json, ("Content-Encoding", "gzip"))
    assert (status, b"Content-Encoding" in text) == (415, True)
    status, text = guarded.send("POST", INFER, bytes(65 << 20), json)
    assert (status, b"larger" in text) == (413, True)
    assert keyed.server.wait(0) is None
    with Detector(guarded.url, timeout=TIMEOUT_S, tls=guarded.tls, headers=headers()) as detector:
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/stats", 200),
        ("GET", "/v2/models/yolox", 200),
        ("GET", "/v2/models/yolox/versions/1/ready", 200),
        ("GET", "/v2/models/yolox/config", 200),
        ("GET", "/v2/models/nope", 404),
        ("GET", INFER, 404),
        ("PUT", INFER, 404),
        ("POST", "/v2/repository/index", 404),
        ("POST", "/v2/repository/models/yolox/unload", 404),
        ("GET", "/v2/logging", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/yolox/../../logging", 404),
        ("GET", "/v2/logging/../models/yolox", 404),
        ("GET", "/v2/%6Dodels/yolox", 404),
        ("GET", "/v2/models/yolox%2f..%2f..%2flogging", 404),
        ("GET", "/v2/models/yolox?x=/v2/models/yolox", 404),
        ("GET", "//v2/models/yolox", 404),
        ("GET", "/metrics", 404),
        ("GET", "/", 404),
    ],
)
def test_only_what_clients_need_is_let_through(guarded: Proxy, method: str, path: str, status: int) -> None:
    found, text = guarded.send(method, path)
    assert found == status, text


def test_large_and_chunked_bodies_with_binary_tensors_arrive_whole(guarded: Proxy) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2600, 3), np.uint8)
    picture = cv2.imencode(".bmp", noise)[1].tobytes()
    assert len(picture) > 4 << 20, "more than nginx keeps in memory"
    given = triton_http.InferInput("image", [1, 1], "BYTES").set_data_from_numpy(np.array([[picture]], np.object_))
    body, json_length = triton_http.InferenceServerClient.generate_request_body([given])
    for encoding in ({"Content-Length": str(len(body))}, {"Transfer-Encoding": "chunked"}):
        sent = {**headers(), **encoding, "Inference-Header-Content-Length": str(json_length)}
        with contextlib.closing(guarded.connect()) as connection:
            parts = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
            connection.request("POST", INFER, parts, sent, encode_chunked="Transfer-Encoding" in sent)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert b'"num_dets"' in answer.read()
