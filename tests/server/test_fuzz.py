"""The short form of the fuzzer through a real server."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.fuzz import steady
from tests.fuzz.beside import Neighbour
from tests.fuzz.documented import documented_in
from tests.fuzz.memory import KINDS, Sender, memory_of
from tests.fuzz.pictures import corpus
from tests.fuzz.refusals import TWO_LENGTHS, over_grpc, over_http
from tests.fuzz.served import fuzz, fuzzed_server
from tests.server.running import Running

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with fuzzed_server() as started:
        yield started


def test_whatever_clients_send_the_server_and_its_neighbours_go_on(server: Running) -> None:
    report = fuzz(server, 0, 600)
    assert report["faults"] == []
    assert report["neighbour_answers"] > 20
    # Of each kind some get as far as the model: what only fails on its way there tries nothing behind it.
    for kind in ("picture", "tensors", "message", "stream", "generate", "bytes", "references"):
        assert f"{kind}: answered" in report["outcomes"], report["outcomes"]


def test_small_requests_that_end_otherwise_or_leave_something_are_faults(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "_requests", lambda: iter([(steady.good_request("classifier"), "INTERNAL")]))
    monkeypatch.setattr(steady, "GROWTH_MIB", -1000.0)
    _, faults = steady.steady(server, 10)
    assert faults[0].startswith("classifier: OK instead of INTERNAL")
    assert [fault for fault in faults if fault.startswith("memory of stubs grows by")]
    assert [fault for fault in faults if fault.startswith("memory of tritonserver grows by")]


@pytest.mark.parametrize("kind", KINDS)
def test_what_memory_is_measured_with_is_answered(server: Running, kind: str) -> None:
    # Of an address that is too long the connection is closed, and an error that repeats it is too long for gRPC.
    closed = {"ConnectionResetError", "BrokenPipeError"} if "name of a model" in kind else set()
    refused = {"RESOURCE_EXHAUSTED"} if "64 KiB" in kind else {"INVALID_ARGUMENT", "400", "500"}
    assert KINDS[kind](Sender(server), 0) in ({"OK"} if "right" in kind else refused | closed)


def test_memory_is_counted_by_where_it_lies(server: Running) -> None:
    found = memory_of(server)
    assert min(found.values()) > 0
    parts = sum(found[f"{name}_mib"] for name in ("heap", "arenas", "else", "files"))
    assert parts == pytest.approx(found["resident_mib"], rel=0.1)


def test_what_triton_refuses_in_words_of_its_own_is_documented(server: Running) -> None:
    for refused in over_http():
        url = f"http://{server.http_url}/v2/models/classifier/infer"
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(urllib.request.Request(url, refused.body, {**JSON, **refused.headers}), timeout=20)
        text = answer.value.read().decode()
        assert refused.words in text
        assert documented_in(text, str(answer.value.code)), (answer.value.code, text)
    with socket.create_connection(("127.0.0.1", server.endpoints.http), timeout=20) as connection:
        connection.sendall(TWO_LENGTHS)
        head, _, text = connection.recv(10_000).decode().partition("\r\n\r\n")
        assert "unexpected size for request JSON, expecting 3 more bytes" in text
        assert documented_in(text, head.split()[1]), head
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for request, words in over_grpc():
            with pytest.raises(grpc.RpcError, match=words) as caught:
                stub.ModelInfer(request, timeout=20)
            _assert_documented(caught.value)


def _assert_documented(error: grpc.RpcError) -> None:
    assert documented_in(error.details(), error.code().name), (error.code(), error.details())


def test_a_batch_that_triton_takes_for_none_gets_what_its_one_picture_does(server: Running) -> None:
    # The steps of the service see a batch of one: docs/errors.md has why, and what is there to be seen.
    picture = corpus()[0]
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = {}
        for batch in (1, 0, 2**40, 2**32 + 1):
            request = service_pb2.ModelInferRequest(model_name="yolox")
            request.inputs.add(name="image", datatype="BYTES", shape=[batch, 1])
            request.outputs.add(name="num_dets")
            request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
            answer = stub.ModelInfer(request, timeout=20)
            found[batch] = (list(answer.outputs[0].shape), list(answer.raw_output_contents))
            if batch == 0:
                request.raw_input_contents[0] = b""
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(request, timeout=20)
                _assert_documented(caught.value)
    contents = found[1][1]
    assert found == {n: (shape, contents) for n, shape in ((1, [1, 1]), (0, [1]), (2**40, [1]), (2**32 + 1, [1, 1]))}


def test_a_refused_picture_never_locks_the_server_up(server: Running) -> None:
    # With two steps of an ensemble ready at the start, one in about a hundred of these stopped gRPC for good.
    request = service_pb2.ModelInferRequest(model_name="yolox")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\x05\0\0\0no jpeg"[:9])
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(1000):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_cut_short_cost_their_sender_only(server: Running) -> None:
    # In one batch with another's picture, Triton would answer both with the error.
    request = service_pb2.ModelInferRequest(model_name="yolox")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\xff\0\0\0abc")
    with Neighbour(server) as neighbour, grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        # As many at once as gather well. Triton lets what is behind such a request lie for up to half a second
        # (docs/security.md): of many more, some would wait longer than they are let wait.
        for _ in range(100):
            calls = [stub.ModelInfer.future(request, timeout=30) for _ in range(4)]
            assert {call.code() for call in calls} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert neighbour.answered > 0
    assert neighbour.wrong == []
