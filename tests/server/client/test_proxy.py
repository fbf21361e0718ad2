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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http
from numpy.typing import NDArray

from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.access import API_HEADER
from pinstream_client import TLS, AccessDenied, AsyncModel, Model, ServerUnreachable
from tests import certificates
from tests.certificates import Certificate
from tests.fuzz.deadly import nested_data, small_chunks
from tests.open_files import open_files
from tests.server.client.conftest import ROOT, TIMEOUT_S
from tests.server.running import Running, running
from tests.server.test_shared_memory import WIDTH, wide

KEY = "an-api-key-for-the-tests"
FEW_FILES = 512
RECIPE = ROOT / "deploy" / "nginx.conf"
INFER = "/v2/models/wide/infer"
# What ends Triton 2.51 where it is called a form.
FORM = b"a=1&" * (1 << 20)


@dataclass(frozen=True)
class Proxy:
    """nginx, and what its clients need.

    Attributes:
        port: Where it listens.
        grpc_port: And for gRPC.
        ca: Vouches for it and for its clients.
        client: A client's certificate.
    """

    port: int
    grpc_port: int
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

    def connect(self, source: str = "127.0.0.1") -> http.client.HTTPSConnection:
        """A connection from an address of this machine of a client that is let in, for what ours would not send."""
        context = ssl.create_default_context(cafile=str(self.ca.cert))
        context.load_cert_chain(self.client.cert, self.client.key)
        return http.client.HTTPSConnection(
            "localhost", self.port, timeout=TIMEOUT_S, source_address=(source, 0), context=context
        )

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
    """The recipe's nginx, in front of a server."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None and not os.environ.get("PINSTREAM_REQUIRE_NGINX"):
        pytest.skip("needs nginx (Debian: nginx-light)")
    assert program is not None
    tls = directory / "tls"
    tls.mkdir()
    ca = certificates.authority(tls, "clients")
    certificates.signed(tls, "server", ca)
    client = certificates.signed(tls, "client", ca)
    ports = Endpoints.free()
    changes = {
        "listen 8443 ssl;": f"listen {ports.http} ssl;",
        "listen 8444 ssl http2;": f"listen {ports.grpc} ssl http2;",
        "server 127.0.0.1:8000;": f"server {endpoints.http_url};",
        "server 127.0.0.1:8001;": f"server {endpoints.grpc_url};",
    }
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
    log = directory / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", ports.http)).close()
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Proxy(ports.http, ports.grpc, ca, client)
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for a key; its model gives twice what it is sent."""
    with running(wide(tmp_path_factory.mktemp("wide") / "wide.onnx"), access=Access(api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(keyed: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before it that asks for a certificate."""
    with proxy(tmp_path_factory.mktemp("proxy"), keyed.endpoints) as before:
        yield before


def headers(key: str = KEY) -> Mapping[str, str]:
    return {API_HEADER: key}


def numbers(items: int) -> NDArray[np.float32]:
    return np.random.default_rng(items).random((items, WIDTH), np.float32)


def infer(before: Proxy, tls: TLS | bool, key: str = KEY, timeout: float = TIMEOUT_S) -> None:
    """A client that gets the right answer, or the error that it was refused with."""
    with Model(before.url, "wide", timeout=timeout, tls=tls, headers=headers(key)) as model:
        given = numbers(1)
        assert np.array_equal(model.infer({"x": given})["y"], 2 * given)


def test_a_client_with_a_certificate_and_the_key_is_answered(guarded: Proxy) -> None:
    async def run() -> None:
        async with AsyncModel(guarded.url, "wide", timeout=TIMEOUT_S, tls=guarded.tls, headers=headers()) as model:
            given = [numbers(1 + index) for index in range(4)]
            found = await asyncio.gather(*(model.infer({"x": one}) for one in given))
            assert all(np.array_equal(answer["y"], 2 * one) for answer, one in zip(found, given, strict=True))

    infer(guarded, guarded.tls)
    asyncio.run(run())


def test_nobody_else_is(guarded: Proxy, tmp_path: Path) -> None:
    stranger = certificates.signed(tmp_path, "stranger", certificates.authority(tmp_path, "other"))
    for tls in (TLS(guarded.ca.cert), TLS(guarded.ca.cert, stranger.cert, stranger.key), True):
        with pytest.raises((AccessDenied, ServerUnreachable), match="certificate"):
            infer(guarded, tls, timeout=10)
    with pytest.raises(AccessDenied, match="restricted"):
        infer(guarded, guarded.tls, key="another")


def test_without_mutual_tls_the_key_decides(keyed: Running, tmp_path: Path) -> None:
    with proxy(tmp_path, keyed.endpoints, mutual=False) as before:
        infer(before, TLS(before.ca.cert))
        with pytest.raises(AccessDenied, match="restricted"):
            infer(before, TLS(before.ca.cert), key="another")


def test_what_triton_does_not_survive_does_not_get_there(guarded: Proxy, keyed: Running) -> None:
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
    infer(guarded, guarded.tls)


def begun(before: Proxy, held: contextlib.ExitStack, address: str) -> http.client.HTTPSConnection:
    """A request of an address of this machine's whose head is sent, and whose body is to follow."""
    connection = held.enter_context(contextlib.closing(before.connect(address)))
    connection.putrequest("POST", INFER)
    connection.putheader("Content-Length", "8")
    connection.endheaders()
    return connection


def test_one_address_takes_so_many_requests_at_a_time_and_leaves_room_for_others(guarded: Proxy) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(128):
            begun(guarded, held, "127.0.0.2")
        answer = begun(guarded, held, "127.0.0.2").getresponse()
        assert (answer.status, b"limit_conn" in answer.read()) == (503, True)
        infer(guarded, guarded.tls)


def test_more_idle_connections_than_a_shell_allows_lock_nobody_out(keyed: Running, tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        with open_files(FEW_FILES):
            before = held.enter_context(proxy(tmp_path, keyed.endpoints))
        held.enter_context(open_files(8192))
        # More than its workers could have open without asking for more.
        for _ in range(2 * FEW_FILES * (os.cpu_count() or 1)):
            held.enter_context(socket.create_connection(("127.0.0.1", before.port), timeout=5))
        infer(before, before.tls)


def test_json_that_is_nested_too_deep_for_triton_does_not_get_there(guarded: Proxy, keyed: Running) -> None:
    deep = nested_data("x", 60_000)
    length = "Inference-Header-Content-Length"
    for lengths in ((), ((length, str(len(deep))),), ((length, "30000"),), ((length, "1e5"),), ((length, "+99"),)):
        status, text = guarded.send("POST", INFER, deep, *lengths)
        assert (status, b"29999" in text) == (413, True), (lengths, text)
    # Of two headers nginx goes by one, and that is the one that Triton gets.
    for first, second in ("100", str(len(deep))), (str(len(deep)), "100"):
        assert guarded.send("POST", INFER, deep, (length, first), (length, second))[0] >= 400
    with contextlib.closing(guarded.connect()) as connection:
        parts = (deep[at : at + 1000] for at in range(0, len(deep), 1000))
        connection.request("POST", INFER, parts, {**headers()}, encode_chunked=True)
        assert connection.getresponse().status == 413
    # And in pieces of one byte, of which Triton gets one.
    with contextlib.closing(guarded.connect()) as connection:
        sent = {**headers(), length: "100", "Transfer-Encoding": "chunked"}
        connection.request("POST", INFER, small_chunks(), sent)
        assert b"failed to parse the request JSON buffer" in connection.getresponse().read()
    assert keyed.server.wait(0) is None
    # What is as long as it may be is Triton's to refuse: it got there, and all of it.
    for kind, most in ((), 29_999), (((length, "29999"),), 40_000):
        body = nested_data("x", 5_000)
        body += b" " * (most - len(body))
        status, text = guarded.send("POST", INFER, body, *kind)
        assert (status, b"Unable to parse 'data'" in text) == (500, True), text
    infer(guarded, guarded.tls)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/stats", 200),
        ("GET", "/v2/models/wide", 200),
        ("GET", "/v2/models/wide/versions/1/ready", 200),
        ("GET", "/v2/models/wide/config", 200),
        ("GET", "/v2/models/nope", 404),
        ("GET", INFER, 404),
        ("PUT", INFER, 404),
        ("POST", "/v2/repository/index", 404),
        ("POST", "/v2/repository/models/wide/unload", 404),
        ("GET", "/v2/logging", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/wide/../../logging", 404),
        ("GET", "/v2/logging/../models/yolox", 404),
        ("GET", "/v2/%6Dodels/yolox", 404),
        ("GET", "/v2/models/wide%2f..%2f..%2flogging", 404),
        ("GET", "/v2/models/wide?x=/v2/models/wide", 404),
        ("GET", "//v2/models/wide", 404),
        ("GET", "/metrics", 404),
        ("GET", "/", 404),
    ],
)
def test_only_what_clients_need_is_let_through(guarded: Proxy, method: str, path: str, status: int) -> None:
    found, text = guarded.send(method, path)
    assert found == status, text


def test_large_and_chunked_bodies_with_binary_tensors_arrive_whole(guarded: Proxy) -> None:
    data = numbers(8)
    assert data.nbytes > 4 << 20, "more than nginx keeps in memory"
    given = triton_http.InferInput("x", list(data.shape), "FP32").set_data_from_numpy(data)
    body, json_length = triton_http.InferenceServerClient.generate_request_body([given])
    for encoding in ({"Content-Length": str(len(body))}, {"Transfer-Encoding": "chunked"}):
        sent = {**headers(), **encoding, "Inference-Header-Content-Length": str(json_length)}
        with contextlib.closing(guarded.connect()) as connection:
            parts = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
            connection.request("POST", INFER, parts, sent, encode_chunked="Transfer-Encoding" in sent)
            answer = connection.getresponse()
            found = answer.read()
            assert answer.status == 200, found[:500]
            assert np.array_equal(np.frombuffer(found[-data.nbytes :], np.float32), 2 * data.ravel())
