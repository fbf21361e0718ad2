"""A server to hurt, and clients that compare every answer that they get meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.leftovers import prefix_of
from pinstream_cli.triton.server import LONGEST_STOP_S
from tests import onnx_models
from tests.client_threads import ClientThreads, in_words
from tests.places import taken
from tests.processes import Process
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.soak_service import Service

# The one has its engine in its own process. Two instances of each of the others share an engine's process; those of the
# last work on two batches of requests at once.
OWN, SHARED, EXECUTIONS = "own", "shared", "executions"
SHARING = 'instance_group [ { count: 2 } ]\nparameters { key: "SHARE_ENGINE" value { string_value: "on" } }\n'
MODELS = {
    OWN: "",
    SHARED: SHARING,
    EXECUTIONS: SHARING + 'parameters { key: "EXECUTIONS" value { string_value: "2" } }\n',
}
# The YOLOX service, of which the detector's instances share an engine, as they do on a GPU; its pictures lie in places
# of the first step's, which may be killed, and the engine that reads them, too.
SERVICE = Service.served
INSTANCES, ENGINES = 5 + 5, 2 + 1
CLIENTS = 4
# What may be answered while something is down. Anything else, and every wrong answer, is a fault.
DOWN = {"StatusCode.UNAVAILABLE", "StatusCode.INTERNAL", "StatusCode.CANCELLED", "StatusCode.NOT_FOUND"}
SIGNS_OF_A_FAULT = ("Traceback", 'File "')


class Scene:
    """`pinstream serve --restart` with three models and the service, and clients that compare what they get.

    Attributes:
        serve: The command's process.
        repository: Its model repository.
        answers: How many requests ended how: "right", or a gRPC status.
        faults: What may never be.
        killed: Processes that should be no more.
        put_back: How often serve had started again when a file was last put back that is not the one loaded.
        struck: When something was last killed, by time.monotonic; None where nothing was.
    """

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "repository"
        self._service = Service(self.repository, "onnx", 1)
        with (self._service.path / "config.pbtxt").open("a") as file:
            file.write('parameters { key: "SHARE_ENGINE" value { string_value: "on" } }\n')
        assert self._service.stubs == INSTANCES - 5
        for seed, (name, config) in enumerate(MODELS.items()):
            onnx_models.classifier(
                add_model(self.repository, name, ONE_LINE + "dynamic_batching { }\n" + config), seed=seed
            )
        self.reference = {
            name: ort.InferenceSession(str(self.file(name)), providers=["CPUExecutionProvider"]) for name in MODELS
        }
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self.killed: list[Process] = []
        self.put_back = -1
        self.struck: float | None = None
        self._restarts = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = ClientThreads([partial(self._client, seed) for seed in range(CLIENTS)], self._stop)

    def file(self, model: str) -> Path:
        """A model's file."""
        return self.repository / model / "1" / "model.onnx"

    def __enter__(self) -> Scene:
        self.start(Endpoints.free())
        self._threads.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_clients()
        self.end()

    def stop_clients(self) -> None:
        """Have nobody ask any more; a client that has ended before is a fault."""
        if not self._stop.is_set():
            self.faults += self._threads.stop(60)

    def start(self, endpoints: Endpoints) -> None:
        """Serve, there."""
        self.serve = Serve(
            "--model-repository", self.repository, "--restart", "--allow-client-shm", endpoints=endpoints
        )
        self.serve.wait_for("Stop with Ctrl-C", 120)

    def end(self) -> float:
        """End serve by SIGTERM; seconds that it took."""
        began = time.monotonic()
        self.serve.process.terminate()
        code, seconds = self.serve.end(LONGEST_STOP_S + 30), time.monotonic() - began
        if code != 0:
            self.faults.append(f"serve ended with {code}")
        if seconds > LONGEST_STOP_S:
            self.faults.append(f"serve took {seconds:.1f} s to end")
        if left := left_behind(self.serve):
            self.faults.append(f"left in /dev/shm: {', '.join(path.name for path in left)}")
        self._restarts += self.serve.text.count("RESTART")
        return seconds

    def ask(self, model: str, rng: np.random.Generator) -> str:
        """One request; "right" or "wrong", or the status that it was refused with."""
        try:
            right = self._is_right(model, rng)
        except AssertionError:
            right = False
        except InferenceServerException as error:
            status, text = str(error.status()), str(error.message())
            if status not in DOWN or any(sign in text for sign in SIGNS_OF_A_FAULT):
                self.faults.append(f"{status}: {text}")
            return status
        except Exception as error:
            self.faults.append(f"no answer of {model} to compare: {in_words(error)}")
            return "wrong"
        if not right:
            self.faults.append(f"a wrong answer of {model}")
        return "right" if right else "wrong"

    def _is_right(self, model: str, rng: np.random.Generator) -> bool:
        if model == SERVICE:
            with grpc.InferenceServerClient(self.serve.grpc_url) as client:
                return self._service.ask(client, rng) == "1"
        pixels = rng.normal(size=(int(rng.integers(1, 9)), 3, 8, 8)).astype(np.float32)
        expected = self.reference[model].run(None, {"pixels": pixels})[0]
        return bool(np.allclose(self._infer(model, pixels), expected, rtol=1e-4, atol=1e-6))

    def _infer(self, model: str, pixels: Any) -> Any:
        tensor = grpc.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        with grpc.InferenceServerClient(self.serve.grpc_url) as client:
            return client.infer(model, [tensor], client_timeout=30).as_numpy("probabilities")

    def _client(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._stop.wait(0.01):
            answer = self.ask(str(rng.choice([*MODELS, SERVICE])), rng)
            with self._lock:
                self.answers[answer] += 1
            if answer != "right":
                self._stop.wait(0.1)

    def serves(self) -> bool:
        """Whether all models are ready and answer, one after the other, several times."""
        rng = np.random.default_rng(9)
        urls = (f"/v2/models/{name}/ready" for name in (*MODELS, SERVICE))
        return all(ready(self.serve.endpoints, url) for url in urls) and all(
            self.ask(name, rng) == "right" for name in [*MODELS, SERVICE] * 4
        )

    def places_are_free(self) -> bool:
        """Whether nobody is to read a picture any more."""
        return taken(prefix_of(self.serve.process.pid)) == 0

    def restarts(self) -> int:
        """How often serve has started again."""
        return self._restarts + self.serve.text.count("RESTART")
