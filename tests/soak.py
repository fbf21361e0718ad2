"""A server under load while versions of its model come, go, and are broken: `python -m tests.soak` (`make soak`).

Once where versions are loaded when somebody says so (explicit), and once where Triton looks for them itself (poll). No
request may be lost, every answer must be that of the version that gave it, `pinstream serve` must have nothing to say
of its processes, and memory, the GPU's too, files, threads and /dev/shm must not grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream.engines.flavour import load_flavour
from pinstream.plans import BuildSpec, build_plan
from pinstream_cli.benchmark import environment
from pinstream_cli.triton import sizing
from pinstream_cli.triton.install import MALLOC
from tests import onnx_models
from tests.client_threads import ClientThreads, in_words
from tests.processes import Family, Process, family, still_there
from tests.server.running import Reached
from tests.server.serve_process import Serve, left_behind

MODEL = "classifier"
SERVES = "Stop with Ctrl-C"
CLIENTS = 3
MODES = ("explicit", "poll")
POLL_S = 1
# Until a version that was dropped in is served; Triton starts a process for it.
PATIENCE_S = 60.0
# From the first quarter of a run to its last: what grows by more than so many, be they MiB, threads or files, leaks; of
# MiB this share more.
GROWTH, SLACK = 0.05, 2.0
# A context takes gigabytes of the GPU's memory, so that a share of it says little. It was the same to 2 MiB.
GPU_SLACK = 32.0
# MiB more for each new version, which tritonserver takes for a plain Python model as well. On a GPU it is four, in an
# arena of malloc's that had none: what all of them come to is the most.
PER_VERSION = {"onnx": 0.2, "plan": 5.0}
ARENAS_MIB = 4.0 * int(MALLOC["MALLOC_ARENA_MAX"])
# As many as a detector of `pinstream serve` has on this machine.
INSTANCES = {
    kind: sizing.instances(len(os.sched_getaffinity(0)), gpu=kind == "plan")[sizing.DETECTOR] for kind in PER_VERSION
}
# By kind and mode, how many executions an instance has: with several, each version has an engine's process as well. On
# the CPU one mode has that, and in the other the instances run engines of their own.
EXECUTIONS = {
    ("onnx", "explicit"): 3,
    ("onnx", "poll"): 1,
    ("plan", "explicit"): 4,
    ("plan", "poll"): 1,
}
CONFIG = """backend: "pinstream"
dynamic_batching {{ }}
instance_group [ {{ count: {instances} }} ]
"""
SHARED = """parameters {{ key: "SHARE_ENGINE" value {{ string_value: "on" }} }}
parameters {{ key: "EXECUTIONS" value {{ string_value: "{executions}" }} }}
"""
# How far an answer may be from ONNX Runtime's: plans multiply FP32 in TF32. Of a million rows that are rounded to its
# ten bits of mantissa some thirty are further off than 0.005, and none further than 0.007.
TOLERANCE = {"onnx": 1e-6, "plan": 1e-2}


class Clients:
    """Clients that hold every answer against ONNX Runtime and the version that gave it.

    Args:
        server: Where they send.
        sessions: ONNX Runtime by version.
        pause_s: Seconds between an answer and the next request.
        tolerance: How far a probability may be from ONNX Runtime's.
    """

    def __init__(
        self, server: Reached, sessions: dict[str, ort.InferenceSession], pause_s: float, tolerance: float
    ) -> None:
        self._pause_s = pause_s
        self._tolerance = tolerance
        self._server = server
        self._sessions = sessions
        self._stop = threading.Event()
        self._threads = ClientThreads([partial(self._run, seed) for seed in range(CLIENTS)], self._stop)
        self.by_version: dict[str, int] = {}
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Clients:
        self._threads.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults += self._threads.stop(60)

    def _run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with grpc.InferenceServerClient(self._server.grpc_url) as client:
            while not self._stop.wait(self._pause_s):
                pixels = rng.normal(size=(int(rng.integers(1, 9)), 3, 8, 8)).astype(np.float32)
                try:
                    version, fault = self._ask(client, pixels), ""
                except InferenceServerException as error:
                    version, fault = "", f"{error.status()}: {error.message()}"
                except AssertionError as error:
                    version, fault = "", f"a wrong answer: {str(error).strip().splitlines()[0]}"
                except Exception as error:
                    version, fault = "", f"no answer to compare: {in_words(error)}"
                with self._lock:
                    self.by_version[version] = self.by_version.get(version, 0) + 1
                    if fault:
                        self.faults.append(fault)

    def _ask(self, client: grpc.InferenceServerClient, pixels: Any) -> str:
        tensor = grpc.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        result = client.infer(MODEL, [tensor], client_timeout=60)
        version = str(result.get_response().model_version)
        expected = self._sessions[version].run(None, {"pixels": pixels})[0]
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, rtol=1e-4, atol=self._tolerance)
        return version


def measure(serve: Serve, instances: int, engines: int, patience_s: float = PATIENCE_S) -> dict[str, float] | None:
    """What the server, its stubs and its engine's process hold.

    Of a version before some may be about to end, so that it waits until there are as many stubs and engines as there
    should be, and all of them for as long as it takes to measure.

    Args:
        serve: It serves one model.
        instances: How many stubs there should be.
        engines: How many processes of an engine there should be.
        patience_s: How long it waits, in seconds.

    Returns:
        MiB resident, threads and open files; MiB of /dev/shm. None where it has waited in vain.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = family(serve)
        if (len(found.stubs), len(found.engines)) == (instances, engines) and (sample := _sample(found)):
            regions = [region.stat().st_size for region in left_behind(serve)]
            return {**sample, "shm_mib": round(sum(regions) / (1 << 20), 1), "regions": len(regions)}
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def _sample(found: Family) -> dict[str, float]:
    """What its processes hold; nothing where one of them has just ended."""
    sample: dict[str, float] = {}
    for prefix, processes in (("", [found.server]), ("stubs_", found.stubs), ("engines_", found.engines)):
        for process in processes:
            held = _held(process.pid)
            if not held:
                return {}
            for name, value in held.items():
                sample[prefix + name] = sample.get(prefix + name, 0) + value
    return sample


def gpu_memory() -> dict[str, float]:
    """What is in use of the GPU's memory, by whomever."""
    from pinstream import cuda

    return {"gpu_mib": round(cuda.memory_used() / (1 << 20), 1)}


def _held(pid: int) -> dict[str, float]:
    process = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        files = len(list((process / "fd").iterdir()))
        resident_kib = int(status["VmRSS"].split()[0])
    except (OSError, KeyError):  # it has just ended, and nobody has waited for it yet
        return {}
    return {"resident_mib": round(resident_kib / 1024, 1), "threads": int(status["Threads"]), "files": files}


class Versions:
    """A model's directory, in which versions come and go; each has weights of its own.

    Args:
        repository: Where it is made.
        kind: What a version is: "onnx", or "plan" for the GPU at hand.
        executions: Of each of its instances; with more than one these have their engine in a process of its own.
    """

    def __init__(self, repository: Path, kind: str, executions: int) -> None:
        self._kind = kind
        self.path = repository / MODEL
        self.path.mkdir()
        config = CONFIG + (SHARED if executions > 1 else "")
        (self.path / "config.pbtxt").write_text(config.format(instances=INSTANCES[kind], executions=executions))
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.last = 0
        self.add()

    def add(self) -> None:
        """Drop in another version, there all at once; that before the last ones goes."""
        self.last += 1
        made = onnx_models.classifier(self.path.parent / f".{self.last}" / "model.onnx", seed=self.last)
        self.sessions[str(self.last)] = ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])
        if self._kind == "plan":
            build_plan(made, made.parent, BuildSpec(batch_sizes=(1, 8)), load_flavour())
        made.parent.rename(self.path / str(self.last))
        for old in self.path.iterdir():
            if old.name.isdecimal() and int(old.name) < self.last - 3:
                shutil.rmtree(old)

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Have a version that cannot be loaded, for a while."""
        self.last += 1
        made = self.path.parent / f".{self.last}"
        made.mkdir()
        (made / f"model.{self._kind}").write_bytes(b"broken")
        made.rename(self.path / str(self.last))
        yield
        shutil.rmtree(self.path / str(self.last))


def soak(
    seconds: float, every_s: float, mode: str = "explicit", pause_s: float = 0.0, kind: str = "onnx"
) -> dict[str, Any]:
    """Run it; `faults` is empty where all is well.

    Args:
        seconds: How long.
        every_s: Seconds between two versions, every third of which is broken.
        mode: Of Triton's model control.
        pause_s: Seconds that a client waits before it sends again.
        kind: What is served: "onnx", or "plan" on the GPU at hand.
    """
    samples: list[dict[str, float]] = []
    executions = EXECUTIONS[kind, mode]
    former: set[Process] = set()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        versions = Versions(Path(directory), kind, executions)
        how = [f"--load-model={MODEL}"] if mode == "explicit" else [f"--repository-poll-secs={POLL_S}"]
        extra = [f"--model-control-mode={mode}", *how]
        serve = Serve("--model-repository", directory, "--restart", *extra, directory=Path.cwd())
        stack.callback(serve.stop)
        serve.wait_for(SERVES, 120)
        clients = stack.enter_context(Clients(serve, versions.sessions, pause_s, TOLERANCE[kind]))
        control = stack.enter_context(grpc.InferenceServerClient(serve.grpc_url))
        began, broken = time.monotonic(), 0
        while time.monotonic() - began < seconds and not watchdog(serve):
            threading.Event().wait(every_s)
            try:
                if versions.last % 3 == 2:
                    broken += _broken_version_is_refused(versions, control, clients, mode)
                    continue
                versions.add()
                if mode == "explicit":
                    control.load_model(MODEL)
                if not _soon(lambda: bool(control.is_model_ready(MODEL, str(versions.last)))):
                    clients.faults.append(f"version {versions.last} was dropped in and is not served")
                # The processes of the version before have a while to end.
                if sample := measure(serve, INSTANCES[kind], engines=int(executions > 1)):
                    samples.append({**sample, **(gpu_memory() if kind == "plan" else {})})
                else:
                    clients.faults.append(f"beside version {versions.last} there are {family(serve)}")
                now = {*family(serve).members}
                if staying := _staying(former - now):
                    clients.faults.append(f"of a version before {versions.last} there still are {staying}")
                former |= now
            except (LookupError, OSError, InferenceServerException) as error:  # there may be no tritonserver any more
                clients.faults.append(f"at version {versions.last}: {in_words(error)}")
                break
    return {
        "mode": mode,
        "kind": kind,
        "instances": INSTANCES[kind],
        "executions": executions,
        "seconds": round(time.monotonic() - began),
        "requests": sum(clients.by_version.values()),
        "requests_by_version": dict(sorted(clients.by_version.items(), key=lambda item: int(item[0] or 0))),
        "reloads": len(samples),
        "broken_versions_refused": broken,
        "samples": samples,
        "faults": [*watchdog(serve), *clients.faults[:20], *growth(samples, PER_VERSION[kind])],
    }


def watchdog(serve: Serve) -> list[str]:
    """What `serve` has said of processes that died or of a model that was lost, and with --restart done about it."""
    said = serve.text.partition(SERVES)[2].splitlines()
    return [line for line in said if line.startswith(("RESTART", "WARNING"))]


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _staying(processes: set[Process]) -> list[Process]:
    """Of processes that should end those that do not."""
    _soon(lambda: not still_there(processes))
    return still_there(processes)


def _broken_version_is_refused(
    versions: Versions, control: grpc.InferenceServerClient, clients: Clients, mode: str
) -> int:
    """Whether a version that cannot be loaded is refused, and the one before serves on."""
    before = str(versions.last)
    with versions.broken():
        if mode == "explicit":
            try:
                control.load_model(MODEL)
            except InferenceServerException:
                pass
            else:
                clients.faults.append(f"a broken version {versions.last} was taken")
        else:
            threading.Event().wait(POLL_S + 3)  # until Triton has looked and tried
        answered = clients.by_version.get(before, 0)
        if not _soon(lambda: clients.by_version.get(before, 0) > answered) or not control.is_model_ready(MODEL):
            clients.faults.append(f"a broken version {versions.last} stopped the model")
        refused = not control.is_model_ready(MODEL, str(versions.last))
        if not refused:
            clients.faults.append(f"a broken version {versions.last} is called ready")
        return int(refused)


def growth(samples: list[dict[str, float]], per_version: float) -> list[str]:
    """What of the samples, one a new version, has grown by more than it may.

    Args:
        samples: Of `measure`.
        per_version: MiB by which tritonserver may grow with each, up to ARENAS_MIB in all.
    """
    quarter = max(1, len(samples) // 4)
    faults = []
    for name in samples[0] if samples else ():
        first, last = (statistics.median(s[name] for s in part) for part in (samples[:quarter], samples[-quarter:]))
        versions = len(samples) - quarter if name == "resident_mib" else 0
        share = GROWTH if name.endswith("mib") else 0.0
        room = GPU_SLACK if name == "gpu_mib" else first * share + SLACK + min(versions * per_version, ARENAS_MIB)
        if last > first + room:
            faults.append(f"{name} grows: {first} at first, {last} at last")
    return faults


@click.command()
@click.option("--seconds", default=180.0, show_default=True)
@click.option("--every", "every_s", default=10.0, show_default=True, help="Seconds between two versions.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), default=MODES, show_default=True)
@click.option("--pause", "pause_s", default=0.0, help="Seconds that a client waits before it sends again.")
@click.option("--kind", type=click.Choice(list(TOLERANCE)), default="onnx", show_default=True, help="plan: on a GPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(seconds: float, every_s: float, modes: tuple[str, ...], pause_s: float, kind: str, out: Path | None) -> None:
    """Load a server in each mode, side by side, while its model is replaced again and again."""
    with ThreadPoolExecutor(len(modes)) as pool:
        reports = list(pool.map(lambda mode: soak(seconds, every_s, mode, pause_s, kind), modes))
    described = {
        **environment.origin(environment.command(["python", "-m", "tests.soak", *sys.argv[1:]])),
        "reports": reports,
    }
    text = json.dumps(described, indent=1) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    faults = [f"{report['mode']}: {fault}" for report in reports for fault in report["faults"]]
    for fault in faults:
        click.echo(fault, err=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
