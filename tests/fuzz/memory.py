"""What tritonserver keeps of hostile requests, one kind at a time: `python -m tests.fuzz.memory --kind ... --out ...`.

Each kind gets a server of its own, beside which nothing else is sent. Variables of malloc given to this command reach
the server, whatever `pinstream serve` would set.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinstream_cli.benchmark import environment
from tests.fuzz.beside import PATIENCE_S, server_mib, stubs
from tests.fuzz.served import fuzzed_server
from tests.fuzz.steady import good_request
from tests.server.running import Running

# Where a heap of an arena other than the main one begins in memory.
HEAP = 64 << 20
SAMPLES = 20
_LONG = 1 << 21
# An error that repeats a longer one is too long for gRPC.
_NAME = 1 << 16
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$")


def memory_of(server: Running) -> dict[str, float]:
    """Resident memory of tritonserver in MiB: of its main arena, of others, elsewhere, of files."""
    found = {"heap": 0, "arenas": 0, "else": 0, "files": 0}
    heaps, where = set[int](), "files"
    for line in Path(f"/proc/{server.server.pid}/smaps").read_text().splitlines():
        if mapping := _MAPPING.match(line):
            start, name = int(mapping[1], 16), mapping[3]
            known = start % HEAP == 0 or start // HEAP in heaps
            where = "heap" if name == "[heap]" else "files" if name else "arenas" if known else "else"
            if where == "arenas":
                heaps.add(start // HEAP)
        elif line.startswith("Rss:"):
            found[where] += int(line.split()[1])
    mib = {f"{name}_mib": round(kib / 1024, 1) for name, kib in found.items()}
    return {"resident_mib": round(server_mib(server), 1), **mib, "arena_heaps": len(heaps)}


class Sender:
    """Sends requests of one kind, over one channel of gRPC or a connection of HTTP each."""

    def __init__(self, server: Running) -> None:
        self._http = server.endpoints.http
        channel = grpc.insecure_channel(server.grpc_url, options=[("grpc.max_receive_message_length", -1)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def over_grpc(self, request: Any, compression: grpc.Compression | None = None) -> str:
        """The status of one request."""
        try:
            self._stub.ModelInfer(request, timeout=PATIENCE_S, compression=compression)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def over_http(self, body: bytes, path: str = "/v2/models/yolox/infer", json_length: int | None = None) -> str:
        """The status of one request, on a connection of its own."""
        headers = {"Content-Type": "application/json"}
        if json_length is not None:
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(json_length),
            }
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                return str(answer.status)
            except OSError as error:
                return type(error).__name__


def _json(**changes: Any) -> bytes:
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}
    return json.dumps({"inputs": [image], **changes}).encode()


def _input(**changes: Any) -> bytes:
    return _json(inputs=[{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["x"], **changes}])


def _grpc(**changes: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="yolox", **changes)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\1\0\0\0x")
    return request


def _grpc_parameter(name: str, value: str) -> Any:
    request = _grpc()
    request.parameters[name].string_param = value
    return request


def _grpc_input(name: str) -> Any:
    request = _grpc()
    request.inputs[0].name = name
    return request


def _oversized_json(length: int) -> tuple[bytes, int]:
    head = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8]}]}).encode()
    return head + bytes(length), len(head)


def _posting(body: bytes, path: str = "/v2/models/yolox/infer", json_length: int | None = None) -> Any:
    return lambda sender, number: sender.over_http(body, path, json_length)


def _asking(request: Any) -> Any:
    return lambda sender, number: sender.over_grpc(request)


def _asking_packed(request: Any) -> Any:
    return lambda sender, number: sender.over_grpc(request, grpc.Compression.Gzip)


def _asking_anew(make: Callable[[str], Any], length: int) -> Any:
    """Another text of that length each time: what is kept by its text would be kept of every one."""
    return lambda sender, number: sender.over_grpc(make(f"{number:08d}" + "x" * (length - 8)))


def _posting_anew(make: Callable[[str], bytes], length: int) -> Any:
    return lambda sender, number: sender.over_http(make(f"{number:08d}" + "x" * (length - 8)))


def _posting_head_and_rest(length: int) -> Any:
    body, head = _oversized_json(length)
    return _posting(body, "/v2/models/classifier/infer", head)


def _photograph() -> bytes:
    """A JPEG of 1280 x 720, as noisy as one of a camera."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(noise, (1280, 720), interpolation=cv2.INTER_CUBIC))[1])


Kind = Callable[[Sender, int], str]
KINDS: dict[str, Kind] = {
    "small, right (gRPC)": _asking(good_request("classifier")),
    "photograph, right (gRPC)": _asking(good_request("yolox", _photograph())),
    "name of a model, 64 KiB, each another (gRPC)": _asking_anew(
        lambda text: service_pb2.ModelInferRequest(model_name=text), _NAME
    ),
    "name of a model, 32 KiB, each another (HTTP)": lambda sender, number: sender.over_http(
        b"{}", f"/v2/models/{number:08d}{'x' * (1 << 15)}/infer"
    ),
    "name of an input, 64 KiB, each another (gRPC)": _asking_anew(_grpc_input, _NAME),
    "name of an input, 2 MiB, each another (HTTP)": _posting_anew(lambda text: _input(name=text), _LONG),
    "id, 2 MiB, each another (gRPC)": _asking_anew(lambda text: _grpc(id=text), _LONG),
    "id, 2 MiB, each another (HTTP)": _posting_anew(lambda text: _json(id=text), _LONG),
    "name of a parameter, 2 MiB, each another (gRPC)": _asking_anew(lambda text: _grpc_parameter(text, "x"), _LONG),
    "name of a parameter, 2 MiB, each another (HTTP)": _posting_anew(lambda text: _json(parameters={text: "x"}), _LONG),
    "value of a parameter, 2 MiB, each another (gRPC)": _asking_anew(lambda text: _grpc_parameter("conf", text), _LONG),
    "value of a parameter, 2 MiB, each another (HTTP)": _posting_anew(
        lambda text: _json(parameters={"conf": text}), _LONG
    ),
    "JSON, 50,000 deep (HTTP)": _posting(b'{"inputs":' + b"[" * 50_000),
    "JSON, 2 MiB of [] (HTTP)": _posting(b'{"inputs":[' + b"[]," * 700_000 + b"[]]}"),
    "16 MiB for 768 bytes (gRPC)": _asking(good_request("classifier", bytes(1 << 24))),
    "16 MiB for 768 bytes, 16 KiB of gzip (gRPC)": _asking_packed(good_request("classifier", bytes(1 << 24))),
    # What a heap is left with holes by.
    "1 KiB to 16 MiB for 768 bytes (gRPC)": lambda sender, number: sender.over_grpc(
        good_request("classifier", bytes(int(2 ** random.Random(number).uniform(10, 24))))
    ),
    "16 MiB for 768 bytes (HTTP)": _posting_head_and_rest(1 << 24),
}


def grow(kind: Kind, count: int, seconds: float, threads: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Send a kind to a new server until there were so many or time is up; its memory meanwhile."""
    outcomes: dict[str, int] = {}
    with fuzzed_server(extra) as server:
        samples, sent, lock = [{"sent": 0, "s": 0.0, **memory_of(server)}], 0, threading.Lock()
        began, used = time.monotonic(), _cpu_s(server)
        over = threading.Event()

        def run() -> None:
            nonlocal sent
            sender = Sender(server)
            while not over.is_set():
                with lock:
                    number, sent = sent, sent + 1
                outcome = kind(sender, number)
                with lock:
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1

        clients = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
        for client in clients:
            client.start()
        for sample in range(SAMPLES):
            while time.monotonic() < began + seconds * (sample + 1) / SAMPLES and sent < count * (sample + 1) / SAMPLES:
                time.sleep(0.02)
            samples.append({"sent": sent, "s": round(time.monotonic() - began, 1), **memory_of(server)})
        over.set()
        for client in clients:
            client.join(PATIENCE_S)
        cpu_ms = (_cpu_s(server) - used) / max(1, sent) * 1e3
        time.sleep(1)
        held = round(sum(stubs(server).values()))
        samples.append({"sent": sent, "s": round(time.monotonic() - began, 1), **memory_of(server)})
    return {
        "outcomes": outcomes,
        "cpu_ms_per_request": round(cpu_ms, 3),
        "samples": samples,
        "stubs_mib_at_the_end": held,
    }


def _cpu_s(server: Running) -> float:
    """CPU time of tritonserver, its stubs and the engine that some share."""
    spent = 0.0
    for pid in (server.server.pid, *stubs(server)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


@click.command()
@click.option("--kind", "kinds", multiple=True, help="A part of its name; several can be given. All by default.")
@click.option("--requests", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--seconds", type=float, default=180.0, show_default=True, help="Longest for one kind.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Clients at once.")
@click.option("--extra", multiple=True, help="An argument for tritonserver, such as --log-verbose=1.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(
    kinds: tuple[str, ...], requests: int, seconds: float, threads: int, extra: tuple[str, ...], out: Path | None
) -> None:
    """Send hostile requests of one kind after the other and look at tritonserver's memory."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report: dict[str, Any] = {
        **environment.origin(environment.command(["python", "-m", "tests.fuzz.memory", *sys.argv[1:]])),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "kinds": {},
    }
    for name, kind in KINDS.items():
        if kinds and not any(part in name for part in kinds):
            continue
        found = report["kinds"][name] = grow(kind, requests, seconds, threads, extra)
        resident = [sample["resident_mib"] for sample in found["samples"]]
        print(f"{name}: {found['outcomes']}, MiB {resident}", file=sys.stderr, flush=True)
        if out:
            out.write_text(json.dumps(report, indent=1) + "\n")
    if not out:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
