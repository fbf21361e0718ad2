"""Bad input through a real server, over gRPC, HTTP and bare sockets, beside a neighbour whose answers are compared."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinstream.tensors import NUMPY_DTYPES
from tests import onnx_models
from tests.fuzz import texts
from tests.fuzz.mutate import mutated
from tests.fuzz.pictures import corpus, liars
from tests.fuzz.targets import NAMES, VALUES, any_array
from tests.server.conftest import add_model
from tests.server.running import Running, running
from tests.yolox_exports import Export

PATIENCE_S = 10.0
# What a wrong request may get. UNAVAILABLE would be a server that is gone, UNKNOWN an exception of Triton's.
ANSWERS = frozenset(
    {"INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"}
)
# What tells an answer that was made by an exception nobody foresaw.
SIGNS_OF_A_FAULT = ("Traceback", 'File "', "internal error", "\\nAt:", "\nAt:")
# Triton 2.51 takes a request of batch 0 for one without a batch dimension, and its Python backend then counts the first
# item dimension as its batch: too many for the model's, it refuses all that it was gathered with (docs/security.md).
KNOWN = re.compile(r"batch size \d+ for '\w+', max allowed is \d+")
# Memory may grow by so much after the first half of a run, in MiB: a stub keeps what its largest picture took, and a
# picture of MAX_IMAGE_PIXELS takes 192 MiB. What leaks with every input is more than that over a run.
GROWTH_MIB = 256


class Fault(AssertionError):
    """A server that did not do what it should."""


class Served:
    """Sends bad input, by its number, to one server."""

    def __init__(self, server: Running) -> None:
        self.server = server
        channel = grpc.insecure_channel(server.grpc_url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._infer_bytes = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._pictures = corpus() + liars()
        self._kinds: tuple[Callable[[random.Random, int], str], ...] = (
            self._picture,
            self._picture,
            self._tensors,
            self._tensors,
            self._body,
            self._bytes,
            self._texts,
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
        if rng.random() < 0.2:
            request.outputs.add(name=rng.choice(("probabilities", "other", "")))
        _set_parameters(request, rng)
        return f"tensors: {self._infer(self._stub.ModelInfer, request)}"

    def _texts(self, rng: random.Random, seed: int) -> str:
        """Names, ids and parameters that are no text, or far too long."""
        if rng.random() < 0.5:
            return f"texts: {self._infer(self._infer_bytes, texts.grpc_message(rng))}"
        # As a form, which is what some clients call every body, 4 MB end Triton 2.51 (docs/security.md).
        return f"texts: {self._post('yolox', texts.http_body(rng), {'Content-Type': 'application/json'})}"

    def _infer(self, call: Callable[..., Any], request: Any) -> str:
        try:
            call(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code, text = error.code().name, error.details() or ""
            if code not in ANSWERS or any(sign in text for sign in SIGNS_OF_A_FAULT):
                raise Fault(f"{code}: {text}") from None
            return str(code)
        return "answered"

    def _body(self, rng: random.Random, seed: int) -> str:
        """An HTTP inference request with a damaged body, or a header that lies about it."""
        whole = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}]}
        deep = b'{"inputs":' + b"[" * 50_000
        body = mutated((json.dumps(whole).encode(), b'{"inputs":[]}', b"{}", deep), seed, 3)
        headers = {"Content-Type": "application/json"}
        if rng.random() < 0.3:
            headers["Inference-Header-Content-Length"] = rng.choice(
                ("0", "-1", "10", "99999999999", "x", str(len(body)))
            )
        if rng.random() < 0.1:
            headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "br"))
        return f"body: {self._post(rng.choice(('classifier', 'classifier', 'yolox', 'none')), body, headers)}"

    def _post(self, model: str, body: bytes, headers: dict[str, str]) -> str:
        url = f"http://{self.server.http_url}/v2/models/{model}/infer"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_S) as answer:
                answer.read()
                return "answered"
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if any(sign in text for sign in SIGNS_OF_A_FAULT):
                raise Fault(f"HTTP {error.code}: {text[:2000]}") from None
            return str(error.code)
        except TimeoutError:
            raise Fault("no answer over HTTP") from None
        except OSError as error:
            return type(error).__name__

    def _bytes(self, rng: random.Random, seed: int) -> str:
        """Bytes to a port that are no request, or one cut short; the client then hangs up."""
        head = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
        lengths = (head % n + b"x" * 20 for n in (-1, 100, 10**12))
        data = mutated((*lengths, frame, frame + b"\x7f\xff\xff\0\0\0\0\0\1", rng.randbytes(300)), seed, 3)
        port = rng.choice((self.server.endpoints.http, self.server.endpoints.grpc))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
            connection.sendall(data)
            connection.recv(1000)
        return "bytes: sent"


_MODELS: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
    ("classifier", "pixels", "FP32", (1, 3, 8, 8)),
    ("dynamic_width", "row", "FP32", (2, 5)),
    ("dynamic_width", "row", "FP32", (1, 13)),
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


class Neighbour:
    """Sends good requests without a break, and compares every answer with the first."""

    def __init__(self, server: Running) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_url))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered = 0
        self.wrong: list[str] = []
        self.known = 0

    def _requests(self) -> Iterator[Any]:
        picture = corpus()[0]
        image = service_pb2.ModelInferRequest(model_name="yolox")
        image.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        image.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
        image.parameters["conf"].double_param = 0.0
        row = service_pb2.ModelInferRequest(model_name="dynamic_width")
        row.inputs.add(name="row", datatype="FP32", shape=[2, 5])
        row.raw_input_contents.append(np.arange(10, dtype=np.float32).tobytes())
        yield from (image, row)

    def _run(self) -> None:
        requests = list(self._requests())
        expected = [list(self._stub.ModelInfer(r, timeout=PATIENCE_S).raw_output_contents) for r in requests]
        while not self._stop.is_set():
            for request, wanted in zip(requests, expected, strict=True):
                try:
                    found = list(self._stub.ModelInfer(request, timeout=PATIENCE_S).raw_output_contents)
                    if found != wanted:
                        self.wrong.append(f"{request.model_name}: another answer than before")
                except grpc.RpcError as error:
                    if KNOWN.search(error.details() or ""):
                        self.known += 1
                    else:
                        self.wrong.append(f"{request.model_name}: {error.code().name}: {error.details()}")
                self.answered += 1
            self._stop.wait(0.005)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)


def stubs(server: Running) -> dict[int, float]:
    """The server's Python stubs: resident memory in MiB by process id."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if fields["Name"].strip().startswith("triton_python") and int(fields["PPid"]) == server.server.pid:
                found[int(status.parent.name)] = int(fields["VmRSS"].split()[0]) / 1024
    return found


@contextlib.contextmanager
def fuzzed_server() -> Iterator[Running]:
    """The YOLOX service with a small network, and plain models beside it."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        onnx_models.classifier(add_model(base / "plain", "classifier"))
        onnx_models.dynamic_width(add_model(base / "plain", "dynamic_width"))
        onnx_models.text(add_model(base / "plain", "text"))
        with running(Export(batch=None).save(base / "small.onnx"), repositories=[base / "plain"]) as server:
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
        resident = [round(sum(before.values()))]
        part = max(1, count // 10)
        for seed in range(first, first + count):
            try:
                outcomes[target.send(seed)] += 1
            except Fault as error:
                faults.append({"seed": seed, "text": str(error)[:500]})
                outcomes["fault"] += 1
            if (seed - first) % part == part - 1:
                resident.append(round(sum(stubs(server).values())))
        after = stubs(server)
    faults += [{"seed": -1, "text": f"the neighbour: {text}"} for text in neighbour.wrong[:20]]
    if before.keys() != after.keys():
        faults.append({"seed": -1, "text": f"the stubs are not those of before: {sorted(before)}, {sorted(after)}"})
    if resident[-1] > resident[len(resident) // 2] + GROWTH_MIB:
        faults.append({"seed": -1, "text": f"memory of the stubs grows: {resident} MiB"})
    return {
        "inputs": count,
        "outcomes": dict(outcomes.most_common()),
        "neighbour_answers": neighbour.answered,
        "neighbour_lost_to_what_triton_does_with_batch_0": neighbour.known,
        "faults": faults,
        "stubs_resident_mib": resident,
        "seconds": round(time.monotonic() - began, 1),
    }
