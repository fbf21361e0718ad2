"""Bad input through a real server, over gRPC, HTTP and bare sockets, beside a neighbour whose answers are compared."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinstream.tensors import NUMPY_DTYPES
from tests import onnx_models
from tests.fuzz import frames, texts
from tests.fuzz.beside import PATIENCE_S, Neighbour, server_mib, stubs
from tests.fuzz.deadly import is_deadly
from tests.fuzz.documented import TRITONS_OWN, documented_in
from tests.fuzz.mutate import mutated
from tests.fuzz.pictures import corpus, liars
from tests.fuzz.served_references import GONE, detect, references, request_with
from tests.fuzz.steady import GOOD, good_request, steady
from tests.fuzz.targets import LONGEST_MESSAGE, NAMES, VALUES, any_array
from tests.server.conftest import add_model
from tests.server.running import Running, running
from tests.yolox_exports import Export

# What a wrong request may get. UNAVAILABLE would be a server that is gone, UNKNOWN an exception of Triton's.
ANSWERS = frozenset(
    {"INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"}
)
# What tells an answer that was made by an exception nobody foresaw.
SIGNS_OF_A_FAULT = ("Traceback", 'File "', "internal error", "\\nAt:", "\nAt:")
# Memory may grow by so much after the first half of a run, in MiB: a stub keeps what its largest picture took, and a
# picture of MAX_IMAGE_PIXELS takes 192 MiB. What leaks with every input is told by small ones afterwards: see `steady`.
GROWTH_MIB = 256
# Small requests after the others; more of them where there were many others.
LEAST_SMALL = 2000
# Of a neighbour's requests, which Triton refuses beside a batch of 0 (docs/security.md).
MOST_KNOWN = 0.005
# Bytes of a request that is far larger than its model takes.
OVERSIZED = (1 << 20, 1 << 22, 1 << 24)


class Fault(AssertionError):
    """A server that did not do what it should."""


class Served:
    """Sends bad input, by its number, to one server."""

    def __init__(self, server: Running) -> None:
        self.server = server
        channel = grpc.insecure_channel(server.grpc_url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._infer_bytes = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._stream_bytes = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        self._pictures = corpus() + liars()
        self._kinds: tuple[Callable[[random.Random, int], str], ...] = (
            self._picture,
            self._picture,
            self._tensors,
            self._tensors,
            self._body,
            self._bytes,
            self._texts,
            self._message,
            self._stream,
            self._generate,
            self._references,
        )

    def send(self, seed: int) -> str:
        """Send input number `seed`; how it ended, in a word or two.

        Raises:
            Fault: It ended as no input may.
        """
        return self._kinds[seed % len(self._kinds)](random.Random(seed), seed)

    def _picture(self, rng: random.Random, seed: int) -> str:
        """One to three pictures to the service, damaged or not, with parameters that may be wrong."""
        data = [mutated(self._pictures, seed + i) if rng.random() < 0.8 else rng.choice(corpus()) for i in range(3)]
        data = data[: rng.choice((1, 1, 3))]
        request = service_pb2.ModelInferRequest(model_name="yolox")
        request.inputs.add(name="image", datatype="BYTES", shape=[len(data), 1])
        request.raw_input_contents.append(b"".join(len(d).to_bytes(4, "little") + d for d in data))
        _set_parameters(request, rng)
        return f"picture: {self._infer(self._stub.ModelInfer, request)}"

    def _tensors(self, rng: random.Random, seed: int) -> str:
        """Tensors whose name, type, shape and bytes need not go together."""
        model, name, dtype, right = rng.choice(_MODELS)
        shape, dtype = list(right), dtype if rng.random() < 0.7 else rng.choice(tuple(NUMPY_DTYPES))
        array = any_array(dtype, [max(0, d) for d in shape], rng)
        content = _serialised(array) if rng.random() < 0.8 else rng.randbytes(rng.choice((0, 1, 7, 5000)))
        if rng.random() < 0.6:
            rng.choice(_DISTORTIONS)(shape, rng)
        request = service_pb2.ModelInferRequest(model_name=model, model_version=rng.choice(("", "", "1", "2", "x")))
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2))):
            request.inputs.add(name=name if rng.random() < 0.9 else "other", datatype=dtype, shape=shape)
            request.raw_input_contents.append(content)
        if rng.random() < 0.1:
            # One too many, or the same once more in Triton's other way of sending it.
            rng.choice((request.raw_input_contents.append, _fp32_contents(request)))(content)
        if rng.random() < 0.2:
            output = request.outputs.add(name=rng.choice(("probabilities", "other", "")))
            if rng.random() < 0.5:
                output.parameters["classification"].int64_param = rng.choice((0, 1, 3, -1, 2**31, 2**40))
        _set_parameters(request, rng)
        return f"tensors: {self._infer(self._stub.ModelInfer, request)}"

    def _message(self, rng: random.Random, seed: int) -> str:
        """A damaged message of gRPC, or one far larger than the model takes, over gRPC or HTTP."""
        if rng.random() < 0.9:
            request = _written(good_request(rng.choice(GOOD)))
            return f"message: {self._infer(self._infer_bytes, mutated((request,), seed, 3))}"
        content = bytes(rng.choice(OVERSIZED))
        if rng.random() < 0.5:
            # Of gzip a thousandth is sent, and Triton unpacks it before anything else.
            call = partial(self._infer_bytes, compression=rng.choice((None, grpc.Compression.Gzip)))
            return f"oversized: {self._infer(call, _written(good_request(rng.choice(GOOD), content)))}"
        head = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8]}]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return f"oversized: {self._post('classifier', head + content, headers)}"

    def _stream(self, rng: random.Random, seed: int) -> str:
        """Requests one behind the other in a stream of gRPC, some of them damaged."""
        good = [_written(good_request(rng.choice(GOOD))) for _ in range(rng.choice((1, 3)))]
        sent = [mutated((request,), seed + i, 2) if rng.random() < 0.3 else request for i, request in enumerate(good)]
        return f"stream: {self._infer(partial(self._streamed, all_good=sent == good), sent)}"

    def _streamed(self, sent: list[bytes], timeout: float, *, all_good: bool) -> None:
        answers = [
            service_pb2.ModelStreamInferResponse.FromString(answer)
            for answer in self._stream_bytes(iter(sent), timeout=timeout)
        ]
        errors = [answer.error_message for answer in answers if answer.error_message]
        # One that cannot be parsed ends the stream, and takes those before it along that are not answered yet.
        if all_good and (errors or len(answers) != len(sent)):
            raise Fault(f"{len(sent)} good requests in a stream got {len(answers)} answers: {errors[:1]}")
        for text in errors:
            _judge(text)

    def _generate(self, rng: random.Random, seed: int) -> str:
        """A request in the shorter form of HTTP, whose tensors are named by its own keys."""
        model, body = texts.generate_request(rng)
        if rng.random() < 0.3:
            body = mutated((body,), seed, 2)
        call = rng.choice(("generate", "generate_stream"))
        return f"generate: {self._post(model, body, {'Content-Type': 'application/json'}, call)}"

    def _texts(self, rng: random.Random, seed: int) -> str:
        """Names, ids and parameters that are no text, or far too long."""
        if rng.random() < 0.5:
            return f"texts: {self._infer(self._infer_bytes, texts.grpc_message(rng))}"
        # As a form, which is what some clients call every body, 4 MB end Triton 2.51 (docs/security.md).
        return f"texts: {self._post('yolox', texts.http_body(rng), {'Content-Type': 'application/json'})}"

    def _references(self, rng: random.Random, seed: int) -> str:
        """References to pictures that the first step has decoded, as it gave them or otherwise."""
        try:
            rows = references(self._stub.ModelInfer, rng)
        except grpc.RpcError as error:
            raise Fault(f"the first step gives no references: {error.code().name}: {error.details()}") from None
        request, good = request_with(rows, rng)
        outcome = self._infer(self._stub.ModelInfer, request, ANSWERS | {GONE})
        # What was not read now is: else there soon are no places left, and everything comes by value.
        self._infer(self._stub.ModelInfer, detect(rows), ANSWERS | {GONE})
        if good and outcome != "answered":
            raise Fault(f"good references to pictures were refused: {outcome}")
        return f"references: {outcome}"

    def _infer(self, call: Callable[..., Any], request: Any, answers: frozenset[str] = ANSWERS) -> str:
        try:
            call(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code, text = error.code().name, error.details() or ""
            if code not in answers:
                raise Fault(f"{code}: {text}") from None
            _judge(text, code)
            return str(code)
        return "answered"

    def _body(self, rng: random.Random, seed: int) -> str:
        """An HTTP inference request with a damaged body, or a header that lies about it."""
        whole = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}]}
        deep = b'{"inputs":' + b"[" * 50_000
        body = mutated((json.dumps(whole).encode(), b'{"inputs":[]}', b"{}", deep), seed, 3)
        if is_deadly(body):
            return "body: left out"
        headers = {"Content-Type": "application/json"}
        if rng.random() < 0.3:
            headers["Inference-Header-Content-Length"] = rng.choice(
                ("0", "-1", "10", "99999999999", "x", str(len(body)))
            )
        if rng.random() < 0.1:
            headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "br"))
        return f"body: {self._post(rng.choice(('classifier', 'classifier', 'yolox', 'none')), body, headers)}"

    def _post(self, model: str, body: bytes, headers: dict[str, str], call: str = "infer") -> str:
        url = f"http://{self.server.http_url}/v2/models/{model}/{call}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_S) as answer:
                answer.read()
                return "answered"
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            # Of an address or an encoding that it does not know HTTP says so by the number alone.
            _judge(text or f"HTTP {error.code}", str(error.code))
            return str(error.code)
        except TimeoutError:
            raise Fault("no answer over HTTP") from None
        except OSError as error:
            return type(error).__name__

    def _bytes(self, rng: random.Random, seed: int) -> str:
        """Bytes to a port that are no request, or one cut short; the client then hangs up."""
        data, port = rng.choice(
            (
                (frames.http_request(rng), self.server.endpoints.http),
                (frames.grpc_call(rng), self.server.endpoints.grpc),
            )
        )
        if rng.random() < 0.3:
            data = mutated((data, rng.randbytes(300)), seed, 3)
        if rng.random() < 0.1:
            port = rng.choice((self.server.endpoints.http, self.server.endpoints.grpc))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
            connection.sendall(data)
            answer = b""
            while more := connection.recv(10_000):
                answer += more
                if b"probabilities" in answer:
                    return "bytes: answered"
        return "bytes: sent"


def _judge(text: str, status: str = "") -> None:
    """Hold what an error says, and its status where it has one, against what it may say.

    Raises:
        Fault: It was made by an exception nobody foresaw, docs/errors.md does not know it, or it repeats too much.
    """
    if any(sign in text for sign in SIGNS_OF_A_FAULT):
        raise Fault(text[:2000])
    heading = documented_in(text, status)
    if not heading:
        raise Fault(f"docs/errors.md does not have: {status} {text[:2000]}")
    # Triton itself repeats names of any length.
    if len(text) > LONGEST_MESSAGE and heading != TRITONS_OWN:
        raise Fault(f"a message of {len(text)} characters: {text[:2000]}")


# What waits for an instance as little as it does for the GPU by default: an engine in a process of its own.
_SHARED = """backend: "pinstream"
parameters { key: "SHARE_ENGINE" value { string_value: "on" } }
parameters { key: "EXECUTIONS" value { string_value: "2" } }
"""


def _written(request: Any) -> bytes:
    """A request as it travels."""
    return bytes(request.SerializeToString())


def _fp32_contents(request: Any) -> Callable[[bytes], None]:
    """Puts bytes into a request as a list of numbers."""

    def put(content: bytes) -> None:
        for tensor in request.inputs[:1]:
            tensor.contents.fp32_contents.extend(memoryview(content[: len(content) // 4 * 4]).cast("f"))

    return put


_MODELS: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
    ("classifier", "pixels", "FP32", (1, 3, 8, 8)),
    ("dynamic_width", "row", "FP32", (2, 5)),
    ("dynamic_width", "row", "FP32", (1, 13)),
    ("executions", "row", "FP32", (2, 5)),
    ("executions", "row", "FP32", (1, 13)),
    ("text", "in", "BYTES", (2, 3)),
    ("yolox", "image", "BYTES", (1, 1)),
    ("yolox_detector", "images", "UINT8", (1, 64, 64, 3)),
    ("yolox_preprocess", "image", "BYTES", (1, 1)),
    ("yolox_postprocess", "after", "INT32", (2, 1)),
    ("yolox_postprocess", "candidates", "FP32", (1, 10, 6)),
    ("none", "x", "FP32", (1,)),
)


def _longer(shape: list[int], rng: random.Random) -> None:
    shape.insert(rng.randint(0, len(shape)), rng.choice((0, 1, 2, -1, 2**31, 2**62)))


def _other(shape: list[int], rng: random.Random) -> None:
    shape[rng.randrange(len(shape))] = rng.choice((0, 1, 9, -1, -(2**63), 2**40, 2**63 - 1))


_DISTORTIONS: tuple[Callable[[list[int], random.Random], None], ...] = (
    _longer,
    _other,
    lambda shape, rng: shape.clear(),
)


def _serialised(array: Any) -> bytes:
    if array.dtype == np.object_:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array.reshape(-1))
    return bytes(array.tobytes())


def _set_parameters(request: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        parameter, value = request.parameters[rng.choice(NAMES)], rng.choice(VALUES)
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, int):
            parameter.int64_param = value % 2**63
        else:
            parameter.string_param = str(value)


@contextlib.contextmanager
def fuzzed_server(extra: Sequence[str] = ()) -> Iterator[Running]:
    """The YOLOX service with a small network, and plain models beside it; with more arguments of tritonserver."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        onnx_models.classifier(add_model(base / "plain", "classifier"))
        onnx_models.dynamic_width(add_model(base / "plain", "dynamic_width"))
        onnx_models.dynamic_width(add_model(base / "plain", "executions", _SHARED))
        onnx_models.text(add_model(base / "plain", "text"))
        with running(
            Export(batch=None).save(base / "small.onnx"), repositories=[base / "plain"], extra=extra
        ) as server:
            yield server


def run_served(first: int, count: int) -> dict[str, Any]:
    """Send `count` inputs to a server of its own; see `fuzz`."""
    with fuzzed_server() as server:
        return fuzz(server, first, count)


def fuzz(server: Running, first: int, count: int) -> dict[str, Any]:
    """Send `count` inputs to a server, from number `first` on, beside a neighbour.

    Returns:
        What came of it; `faults` is empty where all is well.
    """
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    began = time.monotonic()
    with Neighbour(server) as neighbour:
        target, before = Served(server), stubs(server)
        resident = {"stubs": [sum(before.values())], "tritonserver": [server_mib(server)]}
        part = max(1, count // 10)
        for seed in range(first, first + count):
            try:
                outcomes[target.send(seed)] += 1
            except Fault as error:
                faults.append({"seed": seed, "text": str(error)[:500]})
                outcomes["fault"] += 1
            if (seed - first) % part == part - 1:
                resident["stubs"].append(sum(stubs(server).values()))
                resident["tritonserver"].append(server_mib(server))
        grown, leaks = steady(server, max(LEAST_SMALL, count // 2))
        after = stubs(server)
    faults += [{"seed": -1, "text": f"small requests: {text}"} for text in leaks]
    faults += [{"seed": -1, "text": f"the neighbour: {text}"} for text in neighbour.wrong[:20]]
    if neighbour.known > max(1, MOST_KNOWN * neighbour.answered):
        faults.append({"seed": -1, "text": f"the neighbour lost {neighbour.known} requests to batches of 0"})
    if before.keys() != after.keys():
        faults.append({"seed": -1, "text": f"the stubs are not those of before: {sorted(before)}, {sorted(after)}"})
    for name, mib in resident.items():
        if mib[-1] > mib[len(mib) // 2] + GROWTH_MIB:
            faults.append({"seed": -1, "text": f"memory of {name} grows: {list(map(round, mib))} MiB"})
    return {
        "inputs": count,
        "outcomes": dict(outcomes.most_common()),
        "neighbour_answers": neighbour.answered,
        "neighbour_lost_to_what_triton_does_with_batch_0": neighbour.known,
        "faults": faults,
        "growth_mib_of_small_requests": grown,
        **{f"{name}_resident_mib": list(map(round, mib)) for name, mib in resident.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
