"""A server under load while versions of a model come, go, and are broken: `python -m tests.soak` (`make soak`).

A plain model, and the YOLOX service, of which the detector gets new versions, and the other steps are loaded anew with
every second; each once where versions are loaded when somebody says so (explicit), and once where Triton looks for them
itself (poll). No request may be lost, every answer must be that of the version that gave it, `pinstream serve` must
have nothing to say of its processes, and memory, the GPU's too, files, threads and /dev/shm must not grow.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.benchmark import environment
from tests.client_threads import ClientThreads, in_words
from tests.processes import Process, family, still_there
from tests.server.running import Reached
from tests.server.serve_process import Serve
from tests.soak_measure import gpu_memory, growth, measure
from tests.soak_service import Service
from tests.soak_subjects import KINDS, Classifier, Subject

SUBJECTS: dict[str, type[Subject]] = {"classifier": Classifier, "service": Service}
SERVES = "Stop with Ctrl-C"
CLIENTS = 3
MODES = ("explicit", "poll")
RUNS = {f"{served}-{mode}": (served, mode) for served in SUBJECTS for mode in MODES}
POLL_S = 1
# Until a version that was dropped in is served; Triton starts a process for it.
PATIENCE_S = 60.0
# Of `serve`'s own log in the report, where it has something to say of its processes.
LAST_LINES = 20
# MiB more for each new version, which tritonserver takes for a plain Python model as well. On a GPU it is four, in an
# arena of malloc's that had none: what all of them come to is the most.
PER_VERSION = {"onnx": 0.2, "plan": 5.0}
# How many executions an instance has, where it is more than one: then each version has an engine's process as well,
# which it has on a GPU anyway.
EXECUTIONS = {("classifier", "onnx", "explicit"): 3, ("classifier", "plan", "explicit"): 4}


class Clients:
    """Clients that hold every answer against what the version that gave it has to say.

    Args:
        server: Where they send.
        subject: What they ask.
        pause_s: Seconds between an answer and the next request.
    """

    def __init__(self, server: Reached, subject: Subject, pause_s: float) -> None:
        self._pause_s = pause_s
        self._server = server
        self._subject = subject
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
                try:
                    version, fault = self._subject.ask(client, rng), ""
                except InferenceServerException as error:
                    version, fault = "", f"{error.status()}: {error.message()}"
                except AssertionError as error:
                    version, fault = "", f"a wrong answer: {' '.join(str(error).split())[:300]}"
                except Exception as error:
                    version, fault = "", f"no answer to compare: {in_words(error)}"
                with self._lock:
                    self.by_version[version] = self.by_version.get(version, 0) + 1
                    if fault:
                        self.faults.append(fault)


def soak(
    seconds: float,
    every_s: float,
    served: str,
    mode: str,
    pause_s: float = 0.0,
    kind: str = "onnx",
) -> dict[str, Any]:
    """Run it; `faults` is empty where all is well.

    Args:
        seconds: How long.
        every_s: Seconds between two versions, every third of which is broken.
        served: Of SUBJECTS.
        mode: Of Triton's model control.
        pause_s: Seconds that a client waits before it sends again.
        kind: What is loaded: "onnx", or "plan" on the GPU at hand.
    """
    samples: list[dict[str, float]] = []
    former: set[Process] = set()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        subject = SUBJECTS[served](Path(directory), kind, EXECUTIONS.get((served, kind, mode), 1))
        how = [f"--load-model={subject.served}"] if mode == "explicit" else [f"--repository-poll-secs={POLL_S}"]
        extra = [f"--model-control-mode={mode}", *how]
        serve = Serve("--model-repository", directory, "--restart", *extra, directory=Path.cwd())
        stack.callback(serve.stop)
        serve.wait_for(SERVES, 120)
        clients = stack.enter_context(Clients(serve, subject, pause_s))
        control = stack.enter_context(grpc.InferenceServerClient(serve.grpc_url))
        began, broken = time.monotonic(), 0
        while time.monotonic() - began < seconds and not watchdog(serve):
            threading.Event().wait(every_s)
            try:
                if subject.last % 3 == 2:
                    broken += _broken_version_is_refused(subject, control, clients, mode)
                    continue
                subject.add()
                for model in (subject.model, *subject.reconfigure()):
                    if mode == "explicit":
                        control.load_model(model)
                if not _soon(lambda: bool(control.is_model_ready(subject.model, str(subject.last)))):
                    clients.faults.append(f"version {subject.last} was dropped in and is not served")
                if not _soon(partial(subject.is_reconfigured, control)):
                    clients.faults.append(f"beside version {subject.last} the other steps are not loaded anew")
                # The processes of the version before have a while to end.
                if sample := measure(serve, subject.stubs, subject.engines, PATIENCE_S):
                    samples.append({**sample, **(gpu_memory() if kind == "plan" else {})})
                else:
                    clients.faults.append(f"beside version {subject.last} there are {family(serve)}")
                now = {*family(serve).members}
                if staying := _staying(former - now):
                    clients.faults.append(f"of a version before {subject.last} there still are {staying}")
                former |= now
            except (LookupError, OSError, InferenceServerException) as error:  # there may be no tritonserver any more
                clients.faults.append(f"at version {subject.last}: {in_words(error)}")
                break
        unused = subject.unused(serve) if not clients.faults else []
    told = watchdog(serve)
    told += [f"the log: {line}" for line in serve.lines[-LAST_LINES:]] if told else []
    return {
        "served": served,
        "mode": mode,
        "kind": kind,
        "stubs": subject.stubs,
        "executions": subject.executions,
        "seconds": round(time.monotonic() - began),
        "requests": sum(clients.by_version.values()),
        "requests_by_version": dict(sorted(clients.by_version.items(), key=lambda item: int(item[0] or 0))),
        "reloads": len(samples),
        "broken_versions_refused": broken,
        "samples": samples,
        "faults": [*told, *unused, *clients.faults[:20], *growth(samples, PER_VERSION[kind])],
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
    subject: Subject, control: grpc.InferenceServerClient, clients: Clients, mode: str
) -> int:
    """Whether a version that cannot be loaded is refused, and the one before serves on."""
    before = str(subject.last)
    with subject.broken():
        if mode == "explicit":
            try:
                control.load_model(subject.model)
            except InferenceServerException:
                pass
            else:
                clients.faults.append(f"a broken version {subject.last} was taken")
        else:
            threading.Event().wait(POLL_S + 3)  # until Triton has looked and tried
        answered = clients.by_version.get(before, 0)
        if not _soon(lambda: clients.by_version.get(before, 0) > answered) or not control.is_model_ready(subject.model):
            clients.faults.append(f"a broken version {subject.last} stopped the model")
        refused = not control.is_model_ready(subject.model, str(subject.last))
        if not refused:
            clients.faults.append(f"a broken version {subject.last} is called ready")
        return int(refused)


@click.command()
@click.option("--seconds", default=180.0, show_default=True)
@click.option("--every", "every_s", default=10.0, show_default=True, help="Seconds between two versions.")
@click.option("--pause", "pause_s", default=0.0, help="Seconds that a client waits before it sends again.")
@click.option("--kind", type=click.Choice(KINDS), default="onnx", show_default=True, help="plan: on a GPU.")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Choice(list(RUNS)),
    default=list(RUNS),
    help="A server; else all.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(
    seconds: float,
    every_s: float,
    pause_s: float,
    kind: str,
    runs: tuple[str, ...],
    out: Path | None,
) -> None:
    """Load a server for each run, side by side, while its model is replaced again and again."""
    # Before it: a tree may be another one half an hour later.
    about = environment.origin(environment.command(["python", "-m", "tests.soak", *sys.argv[1:]]))
    with ThreadPoolExecutor(len(runs)) as pool:
        reports = list(pool.map(lambda run: soak(seconds, every_s, *RUNS[run], pause_s, kind), runs))
    text = json.dumps({**about, "reports": reports}, indent=1) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    faults = [f"{report['served']}, {report['mode']}: {fault}" for report in reports for fault in report["faults"]]
    for fault in faults:
        click.echo(fault, err=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
