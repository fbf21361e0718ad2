"""deploy/nginx.conf in front of a real Triton's gRPC: what is packed, large or not for clients does not get there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinstream_cli.triton import Access
from pinstream_cli.triton.access import API_HEADER, GRPC_PREFIX
from pinstream_client import TLS, Model
from tests.fuzz.beside import server_mib
from tests.server.client.conftest import TIMEOUT_S
from tests.server.client.test_proxy import KEY, Proxy, proxy
from tests.server.running import Running, running

MIB = 1 << 20
# Of zeros, of which gzip makes a thousandth.
BOMB = 128 * MIB
WITH_KEY = ((GRPC_PREFIX + API_HEADER, KEY),)


@pytest.fixture(scope="module")
def keyed(classifier: Path) -> Iterator[Running]:
    """A server that asks for a key."""
    with running(classifier, access=Access(api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(keyed: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before it that asks for a certificate."""
    with proxy(tmp_path_factory.mktemp("proxy"), keyed.endpoints) as before:
        yield before


@contextlib.contextmanager
def channel(before: Proxy, *, known: bool = True) -> Iterator[grpc.Channel]:
    files = (before.client.key, before.client.cert) if known else ()
    credentials = grpc.ssl_channel_credentials(before.ca.cert.read_bytes(), *(file.read_bytes() for file in files))
    with grpc.secure_channel(f"localhost:{before.grpc_port}", credentials) as opened:
        yield opened


def request(nbytes: int = 768) -> Any:
    made = service_pb2.ModelInferRequest(model_name="classifier", raw_input_contents=[bytes(nbytes)])
    made.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
    return made


def refused(call: Callable[..., Any], given: Any, **settings: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(given, timeout=TIMEOUT_S, **settings)
    return f"{caught.value.code().name}: {caught.value.details()}"


def test_a_client_with_a_certificate_and_the_key_is_answered(guarded: Proxy) -> None:
    headers = {GRPC_PREFIX + API_HEADER: KEY}
    tls = TLS(guarded.ca.cert, guarded.client.cert, guarded.client.key)
    with Model(
        f"grpcs://localhost:{guarded.grpc_port}", "classifier", timeout=TIMEOUT_S, tls=tls, headers=headers
    ) as model:
        found = model.infer({"pixels": np.zeros((1, 3, 8, 8), np.float32)})["probabilities"]
    assert found.shape == (1, 10)


def test_nobody_else_is(guarded: Proxy) -> None:
    with channel(guarded) as opened:
        assert "restricted" in refused(service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer, request())
    with channel(guarded, known=False) as opened:
        found = refused(service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer, request(), metadata=WITH_KEY)
        assert "certificate" in found


def test_what_is_packed_does_not_get_there(guarded: Proxy, keyed: Running) -> None:
    before = server_mib(keyed)
    with channel(guarded) as opened:
        server = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        found = refused(server.ModelInfer, request(BOMB), compression=grpc.Compression.Gzip, metadata=WITH_KEY)
        assert found.startswith("UNIMPLEMENTED: compression is not let through")
        assert refused(server.ModelInfer, request(65 * MIB), metadata=WITH_KEY).startswith(
            "RESOURCE_EXHAUSTED: the request"
        )
    assert server_mib(keyed) < before + 2 * 65, "and not what was packed"


def test_only_what_clients_need_is_let_through(guarded: Proxy) -> None:
    with channel(guarded) as opened:
        server = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        for name, given in (
            ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
            ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()),
            ("LogSettings", service_pb2.LogSettingsRequest()),
        ):
            assert refused(getattr(server, name), given).startswith("UNIMPLEMENTED: not let through"), name
        assert server.ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S).ready


def test_without_it_a_packed_message_takes_memory_of_whoever_has_no_key(keyed: Running) -> None:
    before = server_mib(keyed)
    with grpc.insecure_channel(keyed.grpc_url) as opened:
        server = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        assert "restricted" in refused(server.ModelInfer, request(BOMB), compression=grpc.Compression.Gzip)
    assert server_mib(keyed) > before + BOMB / MIB, "Triton keeps nothing of it: docs/security.md says that it does"
