"""Who is let in: real certificates, real keys, real refusals."""

from __future__ import annotations

import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinstream_cli.main import main
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.access import ADMIN_HEADER, API_HEADER, GRPC_PREFIX, Tls
from tests import certificates
from tests.certificates import Certificate, authority
from tests.listening import addresses, ports_of
from tests.server.running import Running, running
from tests.server.serve_process import Serve
from tests.server.test_leftovers import tritonserver

API_KEY, ADMIN_KEY = "an-api-key-for-the-tests", "an-admin-key-for-the-tests"


def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(server: Any, headers: Mapping[str, str] | None = None) -> None:
    request = service_pb2.ModelInferRequest(model_name="classifier")
    request.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
    request.raw_input_contents.append(bytes(768))
    answer = server.ModelInfer(request, timeout=20, metadata=list((headers or {}).items()))
    assert len(answer.raw_output_contents[0]) == 40


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return f"{caught.value.code().name}: {caught.value.details()}"


def http_status(server: Running, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> int:
    request = urllib.request.Request(f"http://{server.http_url}{path}", body, dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def keyed(classifier: Path) -> Iterator[Running]:
    """A server that asks for both keys."""
    with running(classifier, access=Access(api_key=API_KEY, admin_key=ADMIN_KEY)) as server:
        yield server


def test_inference_needs_the_api_key(keyed: Running) -> None:
    with grpc.insecure_channel(keyed.grpc_url) as channel:
        server = stub(channel)
        infer(server, {GRPC_PREFIX + API_HEADER: API_KEY})
        for wrong in ({}, {GRPC_PREFIX + API_HEADER: "another"}, {GRPC_PREFIX + API_HEADER: ADMIN_KEY}):
            assert "restricted" in refused(partial(infer, server, wrong))
    metadata = "/v2/models/classifier"
    assert http_status(keyed, metadata, {API_HEADER: API_KEY}) == 200
    assert http_status(keyed, metadata) == 403
    assert http_status(keyed, metadata + "/infer", body=b"{}") == 403
    assert http_status(keyed, "/v2/health/ready") == 200, "probes have no keys"


def test_no_other_call_that_infers_or_tells_of_models_gets_by_without_the_key(keyed: Running) -> None:
    model = "/v2/models/classifier"
    for path, body in (
        ("/v2", None),
        ("/v2/models/stats", None),
        *((f"{model}/{call}", None) for call in ("config", "stats", "versions/1", "versions/1/config")),
        *((f"{model}/{call}", b"{}") for call in ("generate", "generate_stream", "versions/1/infer")),
    ):
        for headers in ({}, {API_HEADER: "another"}, {ADMIN_HEADER: ADMIN_KEY}):
            assert http_status(keyed, path, headers, body) == 403, path
    named = {"name": "classifier"}
    with grpc.insecure_channel(keyed.grpc_url) as channel:
        server = stub(channel)
        for call in (
            partial(server.ServerMetadata, service_pb2.ServerMetadataRequest()),
            partial(server.ModelMetadata, service_pb2.ModelMetadataRequest(**named)),
            partial(server.ModelConfig, service_pb2.ModelConfigRequest(**named)),
            partial(server.ModelStatistics, service_pb2.ModelStatisticsRequest(**named)),
            lambda: list(server.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="classifier")]))),
        ):
            assert "restricted" in refused(call)


def test_model_control_needs_the_other_key(keyed: Running) -> None:
    index = service_pb2.RepositoryIndexRequest()
    with grpc.insecure_channel(keyed.grpc_url) as channel:
        server = stub(channel)
        headers = [(GRPC_PREFIX + ADMIN_HEADER, ADMIN_KEY)]
        assert [m.name for m in server.RepositoryIndex(index, metadata=headers).models] == ["classifier"]
        wrong = [(GRPC_PREFIX + API_HEADER, API_KEY)]
        assert "restricted" in refused(lambda: server.RepositoryIndex(index, metadata=wrong))
    assert http_status(keyed, "/v2/repository/index", {ADMIN_HEADER: ADMIN_KEY}, b"") == 200
    assert http_status(keyed, "/v2/repository/index", {API_HEADER: API_KEY}, b"") == 403
    assert http_status(keyed, "/v2/trace/setting", {ADMIN_HEADER: ADMIN_KEY}) == 200
    assert http_status(keyed, "/v2/trace/setting") == 403


def test_no_key_changes_what_is_logged(keyed: Running) -> None:
    """The watchdog reads there that a model is lost."""
    off = service_pb2.LogSettingsRequest()
    off.settings["log_error"].bool_param = False
    for key in ({ADMIN_HEADER: ADMIN_KEY}, {API_HEADER: API_KEY}, {}):
        assert http_status(keyed, "/v2/logging", key, b'{"log_error": false}') == 403
        with grpc.insecure_channel(keyed.grpc_url) as channel:
            sent = [(GRPC_PREFIX + name, value) for name, value in key.items()]
            assert "restricted" in refused(partial(stub(channel).LogSettings, off, metadata=sent))


def test_a_restriction_of_the_users_own_opens_nothing(classifier: Path) -> None:
    own = ["--grpc-restricted-protocol=health:mine=secret", "--http-restricted-api=statistics:mine=secret"]
    access = Access(admin_key=ADMIN_KEY)
    with running(classifier, access=access, extra=own) as started, grpc.insecure_channel(started.grpc_url) as channel:
        server = stub(channel)
        infer(server)
        unload = service_pb2.RepositoryModelUnloadRequest(model_name="classifier")
        region = service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=64)
        assert "restricted" in refused(lambda: server.RepositoryModelUnload(unload))
        assert "restricted" in refused(lambda: server.SystemSharedMemoryRegister(region))
        assert "restricted" in refused(lambda: server.ServerLive(service_pb2.ServerLiveRequest()))
        assert http_status(started, "/v2/models/classifier/stats") == 403
        assert http_status(started, "/v2/logging") == 403
        infer(server)


def test_model_control_opens_models_and_not_what_is_logged(classifier: Path) -> None:
    explicit = ["--model-control-mode=explicit", "--load-model=*"]
    with running(classifier, access=Access(control=True), extra=explicit) as started:
        with grpc.insecure_channel(started.grpc_url) as channel:
            server = stub(channel)
            server.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="classifier"))
            assert "restricted" in refused(lambda: server.LogSettings(service_pb2.LogSettingsRequest()))
            assert "restricted" in refused(lambda: server.TraceSetting(service_pb2.TraceSettingRequest()))
        assert http_status(started, "/v2/logging") == 403
        assert http_status(started, "/v2/trace/setting") == 403


def test_by_default_anybody_here_infers_and_nobody_does_anything_else(classifier: Path) -> None:
    with running(classifier, access=Access()) as started, grpc.insecure_channel(started.grpc_url) as channel:
        server = stub(channel)
        infer(server)
        calls: dict[str, Callable[[], Any]] = {
            "load": lambda: server.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="classifier")),
            "unload": lambda: server.RepositoryModelUnload(
                service_pb2.RepositoryModelUnloadRequest(model_name="classifier")
            ),
            "log settings": lambda: server.LogSettings(service_pb2.LogSettingsRequest()),
            "trace settings": lambda: server.TraceSetting(service_pb2.TraceSettingRequest()),
            "shared memory": lambda: server.SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=64)
            ),
        }
        for name, call in calls.items():
            assert "restricted" in refused(call), name
        for path in (
            "/v2/logging",
            "/v2/trace/setting",
            "/v2/models/classifier/trace/setting",
            "/v2/systemsharedmemory/status",
            "/v2/cudasharedmemory/status",
        ):
            assert http_status(started, path) == 403, path
        for path in (
            "/v2/repository/models/classifier/load",
            "/v2/repository/models/classifier/unload",
            "/v2/systemsharedmemory/region/x/register",
            "/v2/cudasharedmemory/region/x/register",
            "/v2/logging",
            "/v2/trace/setting",
        ):
            assert http_status(started, path, body=b"{}") == 403, path
        infer(server)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_missing_model_is_named_though_the_repository_is_closed(classifier: Path, protocol: str) -> None:
    with running(classifier, access=Access()) as started:
        url = started.grpc_url if protocol == "grpc" else started.http_url
        found = CliRunner().invoke(main, ["detect", str(classifier), "-u", f"{protocol}://{url}", "--model", "nope"])
    assert found.exit_code == 2
    assert "serves no model 'nope': it serves classifier" in found.output
    assert "refused access" not in found.output


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificates.authority(tmp_path_factory.mktemp("ca"), "authority")


def channel_to(server: Running, ca: Certificate, client: Certificate | None = None) -> grpc.Channel:
    chain = (client.key.read_bytes(), client.cert.read_bytes()) if client else (None, None)
    return grpc.secure_channel(server.grpc_url, grpc.ssl_channel_credentials(ca.cert.read_bytes(), *chain))


def test_grpc_is_encrypted_and_both_sides_show_certificates(classifier: Path, tmp_path: Path, ca: Certificate) -> None:
    ours, theirs = (certificates.signed(tmp_path, name, ca) for name in ("server", "client"))
    other_ca = certificates.authority(tmp_path, "other")
    stranger = certificates.signed(tmp_path, "stranger", other_ca)
    with running(classifier, access=Access(tls=Tls(ours.cert, ours.key, ca.cert))) as server:
        with channel_to(server, ca, theirs) as channel:
            infer(stub(channel))
        for trust, client in ((ca, None), (ca, stranger), (other_ca, theirs)):
            with channel_to(server, trust, client) as channel:
                assert refused(partial(infer, stub(channel))).startswith("UNAVAILABLE")
        with grpc.insecure_channel(server.grpc_url) as channel:
            assert refused(partial(infer, stub(channel))).startswith("UNAVAILABLE")


def key_file(path: Path, key: str) -> Path:
    path.write_text(key + "\n")
    path.chmod(0o600)
    return path


def test_public_with_tls_and_a_key_keeps_http_to_this_machine(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path, ca: Certificate
) -> None:
    ours = certificates.signed(tmp_path, "server", ca)
    tls = ["--tls-cert", ours.cert, "--tls-key", ours.key]
    serve = start("--model", classifier, "--public", *tls, "--api-key-file", key_file(tmp_path / "key", API_KEY))
    serve.wait_for("Stop with Ctrl-C")
    assert "PUBLIC" not in serve.text
    assert API_KEY not in serve.text
    assert f"grpcs://127.0.0.1:{serve.endpoints.grpc}" in serve.text
    assert addresses(serve.endpoints.grpc) <= {"0.0.0.0", "::"}
    for port in (serve.endpoints.http, serve.endpoints.metrics):
        assert addresses(port) == {"127.0.0.1"}
    credentials = grpc.ssl_channel_credentials(ca.cert.read_bytes())
    with grpc.secure_channel(f"localhost:{serve.endpoints.grpc}", credentials) as channel:
        infer(stub(channel), {GRPC_PREFIX + API_HEADER: API_KEY})
        assert "restricted" in refused(lambda: infer(stub(channel)))


def test_public_without_tls_says_loudly_what_it_lets_everybody_do(
    start: Callable[..., Serve], classifier: Path
) -> None:
    serve = start("--model", classifier, "--public")
    serve.wait_for("Stop with Ctrl-C")
    for words in ("nothing is encrypted", "everybody can infer", "read the metrics"):
        assert f"PUBLIC {words}" in serve.text or words in serve.text
    assert serve.text.count("PUBLIC") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tls-cert", "{dir}/none.pem"], "belong together"),
        (["--tls-cert", "{dir}/none.pem", "--tls-key", "{dir}/none.key"], "not a file that can be read"),
        (["--tls-client-ca", "{dir}/none.pem"], "needs the server's own"),
        (["--api-key-file", "{dir}/none"], "cannot be read"),
        (["--api-key-file", "{dir}/open"], "can be read by others"),
        (["--admin-key-file", "{dir}/short"], "holds no key"),
        (["--tls-cert", "{dir}/short", "--tls-key", "{dir}/short"], "are not a certificate and its private key"),
        (["--tls-cert", "{dir}/one.pem", "--tls-key", "{dir}/two.key"], "are not a certificate and its private key"),
        (
            ["--tls-cert", "{dir}/one.pem", "--tls-key", "{dir}/one.key", "--tls-client-ca", "{dir}/short"],
            "holds no certificate",
        ),
        (["--tls-cert", "{dir}/one.pem", "--tls-key", "{dir}/read.key"], "read.key can be read by others (mode 640)"),
        (["--api-key-file", "{dir}/key", "--admin-key-file", "{dir}/key"], "hold the same key"),
        (["--public", "--host", "127.0.0.1"], "give one of the two"),
        (["--public", "--host="], "give one of the two"),
        (["--host="], "error: --host is empty"),
        (["--allow-sagemaker=true"], "to everybody, on all addresses and without the keys"),
        (["--allow-vertex-ai", "true"], "to everybody, on all addresses and without the keys"),
        (["--tls-cert", "{dir}/one.pem", "--tls-key", "{dir}/one.key", "--grpc-use-ssl=false"], "would change what"),
    ],
)
def test_wrong_files_are_told_before_the_start(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    key_file(tmp_path / "short", "abc")
    key_file(tmp_path / "key", API_KEY)
    key_file(tmp_path / "open", API_KEY).chmod(0o644)
    if any(".pem" in argument and "none" not in argument for argument in arguments):
        for name in ("one", "two"):
            made = authority(tmp_path, name)
        shutil.copy(made.key, tmp_path / "read.key")
        (tmp_path / "read.key").chmod(0o640)
    serve = start("--model", classifier, *(argument.format(dir=tmp_path) for argument in arguments))
    assert serve.end() == 2
    assert words in serve.text
    assert "Traceback" not in serve.text
    assert "PUBLIC" not in serve.text


def test_the_variables_of_a_cloud_open_no_further_door(start: Callable[..., Serve], classifier: Path) -> None:
    door = str(Endpoints.free().http)
    vertex = {"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": door, "AIP_PREDICT_ROUTE": "/p", "AIP_HEALTH_ROUTE": "/h"}
    sagemaker = {"SAGEMAKER_BIND_TO_PORT": door, "SAGEMAKER_SAFE_PORT_RANGE": "8000-9000"}
    serve = start("--model", classifier, env=vertex | sagemaker)
    serve.wait_for("Stop with Ctrl-C")
    assert ports_of(tritonserver(serve)) == {serve.endpoints.http, serve.endpoints.grpc, serve.endpoints.metrics}


def test_nothing_of_a_server_here_is_reached_from_another_address(classifier: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = probe.getsockname()[0]
        except OSError:
            pytest.skip("no address but loopback here")
    with running(classifier, access=Access()) as server:
        ports: Endpoints = server.endpoints
        for port in (ports.http, ports.grpc, ports.metrics):
            with pytest.raises((ConnectionRefusedError, TimeoutError)):
                socket.create_connection((own, port), timeout=2).close()
