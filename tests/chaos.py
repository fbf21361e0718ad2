"""Faults on purpose, under load: `python -m tests.chaos` (`make chaos`).

Processes are killed, model files damaged and clients killed while others hold every answer against ONNX Runtime. Nobody
may ever get a wrong answer or a traceback, what dies may not be called ready, and all has to come back without a hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.benchmark import environment
from tests import onnx_models
from tests.processes import Family, Process, family, out_of_place
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_restart import seconds_until

# Two instances of the one share an engine process; the other has its engine in its own.
OWN, SHARED = "own", "shared"
SHARING = 'instance_group [ { count: 2 } ]\nparameters { key: "SHARE_ENGINE" value { string_value: "on" } }\n'
INSTANCES = 3
CLIENTS = 2
UNREADY_S, BACK_S, GONE_S = 5.0, 90.0, 5.0
# What may be answered while something is down. Anything else, and every wrong answer, is a fault.
DOWN = {"StatusCode.UNAVAILABLE", "StatusCode.INTERNAL", "StatusCode.CANCELLED", "StatusCode.NOT_FOUND"}
SIGNS_OF_A_FAULT = ("Traceback", 'File "')


class Scene:
    """`pinstream serve --restart` with two models, and clients that compare what they get.

    Attributes:
        serve: The command's process.
        repository: Its model repository.
        answers: How many requests ended how: "right", or a gRPC status.
        faults: What may never be.
        killed: Processes that should be no more.
        put_back: How often serve had started again when a file was last put back that is not the one loaded.
    """

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "repository"
        onnx_models.classifier(add_model(self.repository, OWN, ONE_LINE + "dynamic_batching { }\n"), seed=1)
        onnx_models.classifier(
            add_model(self.repository, SHARED, ONE_LINE + "dynamic_batching { }\n" + SHARING), seed=2
        )
        self.reference = {
            name: ort.InferenceSession(str(self.file(name)), providers=["CPUExecutionProvider"])
            for name in (OWN, SHARED)
        }
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self.killed: list[Process] = []
        self.put_back = -1
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(seed,), daemon=True) for seed in range(CLIENTS)]

    def file(self, model: str) -> Path:
        """A model's file."""
        return self.repository / model / "1" / "model.onnx"

    def __enter__(self) -> Scene:
        self.serve = Serve("--model-repository", self.repository, "--restart", "--allow-client-shm")
        self.serve.wait_for("Stop with Ctrl-C", 120)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self.serve.process.terminate()
        if self.serve.end(120) != 0:
            self.faults.append(f"serve ended with {self.serve.process.returncode}")
        if left := left_behind(self.serve):
            self.faults.append(f"left in /dev/shm: {', '.join(path.name for path in left)}")

    def ask(self, model: str, rng: np.random.Generator) -> str:
        """One request; "right", or the status that it was refused with."""
        pixels = rng.normal(size=(int(rng.integers(1, 9)), 3, 8, 8)).astype(np.float32)
        tensor = grpc.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        try:
            with grpc.InferenceServerClient(self.serve.grpc_url) as client:
                got = client.infer(model, [tensor], client_timeout=30).as_numpy("probabilities")
        except InferenceServerException as error:
            status, text = str(error.status()), str(error.message())
            if status not in DOWN or any(sign in text for sign in SIGNS_OF_A_FAULT):
                self.faults.append(f"{status}: {text}")
            return status
        if not np.allclose(got, self.reference[model].run(None, {"pixels": pixels})[0], rtol=1e-4, atol=1e-6):
            self.faults.append(f"a wrong answer of {model}")
        return "right"

    def _client(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._stop.wait(0.01):
            answer = self.ask(OWN if rng.random() < 0.5 else SHARED, rng)
            with self._lock:
                self.answers[answer] += 1
            if answer != "right":
                self._stop.wait(0.1)

    def serves(self) -> bool:
        """Whether both models are ready and answer, one after the other, several times."""
        rng = np.random.default_rng(9)
        urls = (f"/v2/models/{name}/ready" for name in (OWN, SHARED))
        return all(ready(self.serve.endpoints, url) for url in urls) and all(
            self.ask(name, rng) == "right" for name in (OWN, SHARED) * 3
        )

    def restarts(self) -> int:
        """How often serve has started again."""
        return self.serve.text.count("RESTART")


@contextlib.contextmanager
def refused_nothing(scene: Scene) -> Any:
    """What happens inside may not cost a single request."""
    before = scene.answers.copy()
    yield
    threading.Event().wait(1)
    lost = scene.answers - before
    lost.pop("right", None)
    if lost:
        scene.faults.append(f"requests were lost: {dict(lost)}")


def kill(scene: Scene, process: Process) -> None:
    """Kill a process of the server, and expect it never to be seen again."""
    os.kill(process.pid, signal.SIGKILL)
    scene.killed.append(process)


def check_processes(scene: Scene, before: Family) -> None:
    """Hold the processes against those of before the fault; what has to end may take a moment to."""

    def wrong() -> list[str]:
        return out_of_place(before, family(scene.serve), scene.killed, INSTANCES)

    try:
        seconds_until(lambda: not wrong(), GONE_S)
    except AssertionError:
        scene.faults += wrong()
    scene.killed.clear()


def _killed(scene: Scene, *victims: Process) -> None:
    """Kill one of the processes; serve has to notice, and to start again."""
    before = scene.restarts()
    kill(scene, random.choice(victims))
    _check_noticed(scene, before)


def _check_noticed(scene: Scene, before: int) -> None:
    with contextlib.suppress(AssertionError):
        seconds_until(lambda: scene.restarts() > before or not ready(scene.serve.endpoints), UNREADY_S)
        return
    scene.faults.append(f"what was killed was called ready for {UNREADY_S} s")


def stub(scene: Scene) -> None:
    """The process of a model instance is killed."""
    _killed(scene, *family(scene.serve).stubs)


def server(scene: Scene) -> None:
    """Tritonserver is killed."""
    _killed(scene, family(scene.serve).server)


def engine(scene: Scene) -> None:
    """The process that runs the engine of two instances is killed; the next request starts it."""
    before = scene.restarts()
    _kill_engines(scene)
    threading.Event().wait(2)
    if scene.restarts() > before and scene.put_back != before:
        scene.faults.append("the death of an engine's process restarted the server")


def engine_without_file(scene: Scene) -> None:
    """The same, and nothing is there to start it from: serve has to notice, as where anything else is lost."""
    before, file = scene.restarts(), scene.file(SHARED)
    away = file.rename(file.with_name(".away"))
    _kill_engines(scene)
    _check_noticed(scene, before)
    away.rename(file)


def _kill_engines(scene: Scene) -> None:
    found = family(scene.serve).engines
    for process in found:
        kill(scene, process)
    if not found:
        scene.faults.append("no engine's process was found to be killed")


SHARER = """
import sys, time
import numpy as np, tritonclient.grpc as grpc, tritonclient.utils.shared_memory as shm
url, model, name = sys.argv[1:]
client = grpc.InferenceServerClient(url)
pixels = np.zeros((8, 3, 8, 8), np.float32)
region = shm.create_shared_memory_region(name, "/" + name, pixels.nbytes)
shm.set_shared_memory_region(region, [pixels])
client.register_system_shared_memory(name, "/" + name, pixels.nbytes)
tensor = grpc.InferInput("pixels", list(pixels.shape), "FP32")
tensor.set_shared_memory(name, pixels.nbytes)
while True:
    client.infer(model, [tensor])
    print("answered", flush=True)
"""


def sharing_client(scene: Scene) -> None:
    """A client whose memory the server reads is killed while it does so, and its memory goes away."""
    name = f"pinstream_chaos_{os.getpid()}"
    for model in (OWN, SHARED):
        command = [sys.executable, "-c", SHARER, scene.serve.grpc_url, model, name]
        with refused_nothing(scene), subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            for _ in range(20):
                client.stdout.readline()
            client.kill()
            client.wait()
            # Python's tracker of such memory may have been first.
            Path(f"/dev/shm/{name}").unlink(missing_ok=True)
        with grpc.InferenceServerClient(scene.serve.grpc_url) as cleaner:
            cleaner.unregister_system_shared_memory(name)


def _files(change: Callable[[Path], object]) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        """What is loaded needs its file no more."""
        for model in (OWN, SHARED):
            file = scene.file(model)
            kept = file.read_bytes()
            with refused_nothing(scene):
                change(file)
            # The new file is there all at once: Triton may be starting again just now.
            (file.parent / ".kept").write_bytes(kept)
            (file.parent / ".kept").rename(file)
            scene.put_back = scene.restarts()

    return fault


def _replace(file: Path) -> None:
    other = onnx_models.classifier(file.parent / ".other.onnx", seed=3)
    other.rename(file)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "stub killed": stub,
    "tritonserver killed": server,
    "engine process killed": engine,
    "engine process killed while its file is away": engine_without_file,
    "client with shared memory killed": sharing_client,
    "model file removed": _files(Path.unlink),
    "model file replaced": _files(_replace),
    "model file truncated": _files(lambda file: os.truncate(file, 100)),
    "model file emptied": _files(lambda file: os.truncate(file, 0)),
}


def inflict(scene: Scene, name: str) -> float:
    """Let one fault happen; seconds from its end until all is served again."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    before = family(scene.serve)
    FAULTS[name](scene)
    try:
        seconds = seconds_until(scene.serves, BACK_S)
    except AssertionError:
        scene.faults.append(f"{name}: not back within {BACK_S} s")
        return float("inf")
    check_processes(scene, before)
    return seconds


def chaos(seconds: float, seed: int) -> dict[str, Any]:
    """Faults in random order until the time is up; `faults` is empty where all is well."""
    rng = random.Random(seed)
    # Which of several processes is killed.
    random.seed(seed)
    began, back = time.monotonic(), {name: list[float]() for name in FAULTS}
    directory = Path(tempfile.mkdtemp())
    with Scene(directory) as scene:
        while time.monotonic() - began < seconds and not scene.faults:
            for name in rng.sample(list(FAULTS), len(FAULTS)):
                back[name].append(round(inflict(scene, name), 2))
                threading.Event().wait(rng.uniform(0, 2))
    shutil.rmtree(directory)
    return {
        "seconds": round(time.monotonic() - began),
        "seed": seed,
        "answers": dict(scene.answers),
        "restarts": scene.restarts(),
        "seconds_until_served_again": back,
        "faults": scene.faults,
    }


@click.command()
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the order of the faults.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(seconds: float, seed: int, out: Path | None) -> None:
    """Kill and damage what can be, under load, again and again."""
    report = {
        **environment.origin(environment.command(["python", "-m", "tests.chaos", *sys.argv[1:]])),
        **chaos(seconds, seed),
    }
    text = json.dumps(report, indent=1) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
