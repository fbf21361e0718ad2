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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import tritonclient.grpc as grpc

from pinstream_cli.benchmark import environment
from tests import onnx_models
from tests.chaos_scene import ENGINES, EXECUTIONS, INSTANCES, MODELS, SHARED, Scene
from tests.processes import Family, Process, family, out_of_place
from tests.server.serve_process import ready
from tests.server.test_restart import seconds_until
from yolox_steps.places import LOST_AFTER_S

UNREADY_S, BACK_S, GONE_S = 5.0, 90.0, 5.0
# What may be answered while it ends; gRPC's server itself cancels what it can wait for no longer, as an ensemble's
# request that is between two steps.
ENDING = {"right", "StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND", "StatusCode.CANCELLED"}
Seconds = dict[str, float]


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
    scene.struck = time.monotonic()


def check_processes(scene: Scene, before: Family) -> None:
    """Hold the processes against those of before the fault; what has to end may take a moment to."""

    def wrong() -> list[str]:
        return out_of_place(before, family(scene.serve), scene.killed, INSTANCES, ENGINES)

    try:
        seconds_until(lambda: not wrong(), GONE_S)
    except AssertionError:
        scene.faults += wrong()
    scene.killed.clear()


def _killed(scene: Scene, *victims: Process) -> Seconds:
    """Kill one of the processes; serve has to notice, and to start again."""
    before = scene.restarts()
    kill(scene, random.choice(victims))
    return _noticed(scene, before)


def _noticed(scene: Scene, before: int) -> Seconds:
    """Seconds until what was killed is not called ready any more, which may not be many."""

    def noticed() -> bool:
        return not ready(scene.serve.endpoints) or scene.restarts() > before

    try:
        return {"not_ready": seconds_until(noticed, UNREADY_S)}
    except AssertionError:
        scene.faults.append(f"what was killed was called ready for {UNREADY_S} s")
        return {"not_ready": float("inf")}


def stub(scene: Scene) -> Seconds:
    """The process of a model instance is killed."""
    return _killed(scene, *family(scene.serve).stubs)


def server(scene: Scene) -> Seconds:
    """Tritonserver is killed."""
    return _killed(scene, family(scene.serve).server)


def engine(scene: Scene) -> Seconds:
    """The processes that run the engines of several instances are killed; the next request starts them."""
    before = scene.restarts()
    _kill_engines(scene)
    back = seconds_until(scene.serves, BACK_S)
    threading.Event().wait(2)
    if scene.restarts() > before and scene.put_back != before:
        scene.faults.append("the death of an engine's process restarted the server")
    return {"served_again": back}


def engine_without_file(scene: Scene) -> Seconds:
    """The same, and nothing is there to start one from: serve has to notice, as where anything else is lost."""
    before, file = scene.restarts(), scene.file(random.choice((SHARED, EXECUTIONS)))
    away = file.rename(file.with_name(".away"))
    _kill_engines(scene)
    seconds = _noticed(scene, before)
    away.rename(file)
    return seconds


def stop(scene: Scene) -> Seconds:
    """Serve is told to end under load, and started by hand; what has begun is answered, and nothing ends otherwise."""
    before = scene.answers.copy()
    seconds = scene.end()
    if strange := {*(scene.answers - before)} - ENDING:
        scene.faults.append(f"while it ended, requests were answered {', '.join(strange)}")
    scene.struck = time.monotonic()
    scene.start(scene.serve.endpoints)
    return {"exit": seconds}


def _kill_engines(scene: Scene) -> None:
    found = family(scene.serve).engines
    for process in found:
        kill(scene, process)
    if len(found) != ENGINES:
        scene.faults.append(f"engines' processes that were found to be killed: {len(found)} of {ENGINES}")


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


def sharing_client(scene: Scene) -> Seconds:
    """A client whose memory the server reads is killed while it does so, and its memory goes away."""
    name = f"pinstream_chaos_{os.getpid()}"
    for model in MODELS:
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
    return {}


def _files(change: Callable[[Path], object]) -> Callable[[Scene], Seconds]:
    def fault(scene: Scene) -> Seconds:
        """What is loaded needs its file no more."""
        for model in MODELS:
            file = scene.file(model)
            kept = file.read_bytes()
            with refused_nothing(scene):
                change(file)
            # The new file is there all at once: Triton may be starting again just now.
            (file.parent / ".kept").write_bytes(kept)
            (file.parent / ".kept").rename(file)
            scene.put_back = scene.restarts()
        return {}

    return fault


def _replace(file: Path) -> None:
    other = onnx_models.classifier(file.parent / ".other.onnx", seed=3)
    other.rename(file)


FAULTS: dict[str, Callable[[Scene], Seconds]] = {
    "stub killed": stub,
    "tritonserver killed": server,
    "engine process killed": engine,
    "engine process killed while its file is away": engine_without_file,
    "client with shared memory killed": sharing_client,
    "model file removed": _files(Path.unlink),
    "model file replaced": _files(_replace),
    "model file truncated": _files(lambda file: os.truncate(file, 100)),
    "model file emptied": _files(lambda file: os.truncate(file, 0)),
    "SIGTERM": stop,
}


def inflict(scene: Scene, name: str) -> Seconds:
    """Let one fault happen.

    Returns:
        Seconds until what it concerns was not ready, or had ended, where it was to; and until all is served again, from
        where something was killed, else from the fault's end.
    """
    print(f"{name} ...", file=sys.stderr, flush=True)
    before, scene.struck = family(scene.serve), None
    try:
        seconds = FAULTS[name](scene)
        struck = scene.struck or time.monotonic()
        seconds_until(scene.serves, BACK_S)
    except AssertionError:
        scene.faults.append(f"{name}: not back within {BACK_S} s")
        return {"served_again": float("inf")}
    seconds = {"served_again": time.monotonic() - struck, **seconds}
    check_processes(scene, before)
    return seconds


def chaos(seconds: float, seed: int) -> dict[str, Any]:
    """Faults in random order until the time is up; `faults` is empty where all is well."""
    rng = random.Random(seed)
    # Which of several processes is killed.
    random.seed(seed)
    began = time.monotonic()
    until: dict[str, dict[str, list[float]]] = {name: {} for name in FAULTS}
    directory = Path(tempfile.mkdtemp())
    with Scene(directory) as scene:
        while time.monotonic() - began < seconds and not scene.faults:
            for name in rng.sample(list(FAULTS), len(FAULTS)):
                for what, took in inflict(scene, name).items():
                    until[name].setdefault(what, []).append(round(took, 2))
                threading.Event().wait(rng.uniform(0, 2))
        scene.stop_clients()
        # Those of requests that were given up on the way are free then.
        try:
            seconds_until(scene.places_are_free, LOST_AFTER_S + GONE_S)
        except AssertionError:
            scene.faults.append("places are taken that nobody reads any more")
    shutil.rmtree(directory)
    return {
        "seconds": round(time.monotonic() - began),
        "seed": seed,
        "answers": dict(scene.answers),
        "restarts": scene.restarts(),
        "seconds_until": until,
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
