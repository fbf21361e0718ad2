"""What has to be as it was, whatever is sent: the answers to a neighbour, the processes, their memory."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.client_threads import ClientThreads, in_words
from tests.fuzz.pictures import corpus
from tests.server.running import Running

PATIENCE_S = 10.0
# Triton 2.51 takes a request of batch 0 for one without a batch dimension, and its Python backend then counts the first
# item dimension as its batch: too many for the model's, it refuses all that it was gathered with (docs/security.md).
KNOWN = re.compile(r"batch size \d+ for '\w+', max allowed is \d+")


class Neighbour:
    """Sends good requests without a break, and compares every answer with the first."""

    def __init__(self, server: Running) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_url))
        self._stop = threading.Event()
        self._client = ClientThreads([self._run], self._stop)
        self.answered = 0
        self.wrong: list[str] = []
        self.known = 0

    def _requests(self) -> Iterator[Any]:
        picture = corpus()[0]
        image = service_pb2.ModelInferRequest(model_name="yolox")
        image.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        image.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
        image.parameters["conf"].double_param = 0.0
        yield image
        for model in ("dynamic_width", "executions"):
            row = service_pb2.ModelInferRequest(model_name=model)
            row.inputs.add(name="row", datatype="FP32", shape=[2, 5])
            row.raw_input_contents.append(np.arange(10, dtype=np.float32).tobytes())
            yield row

    def _run(self) -> None:
        requests = list(self._requests())
        expected = [self._infer(request) for request in requests]
        while not self._stop.is_set():
            for request, wanted in zip(requests, expected, strict=True):
                try:
                    if self._infer(request) != wanted:
                        self.wrong.append(f"{request.model_name}: another answer than before")
                except grpc.RpcError as error:
                    if KNOWN.search(error.details() or ""):
                        self.known += 1
                    else:
                        self.wrong.append(f"{request.model_name}: {error.code().name}: {error.details()}")
                except Exception as error:
                    self.wrong.append(f"{request.model_name}: no answer to compare: {in_words(error)}")
                self.answered += 1
            self._stop.wait(0.005)

    def _infer(self, request: Any) -> list[bytes]:
        return list(self._stub.ModelInfer(request, timeout=PATIENCE_S).raw_output_contents)

    def __enter__(self) -> Neighbour:
        self._client.start()
        return self

    def __exit__(self, *_: object) -> None:
        # It may have three requests before it.
        self.wrong += self._client.stop(3 * PATIENCE_S)


def stubs(server: Running) -> dict[int, float]:
    """The server's Python stubs and the engine that some share: resident memory in MiB by process id."""
    everyone = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            everyone[int(status.parent.name)] = fields
    mine = {server.server.pid}
    mine |= {pid for pid, fields in everyone.items() if int(fields["PPid"]) == server.server.pid}
    return {
        pid: int(fields["VmRSS"].split()[0]) / 1024
        for pid, fields in everyone.items()
        if int(fields["PPid"]) in mine and "VmRSS" in fields
    }


def server_mib(server: Running) -> float:
    """Resident memory of tritonserver itself, in MiB."""
    status = Path(f"/proc/{server.server.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
