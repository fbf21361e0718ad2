"""A server under load while versions of its model come, go, and are broken: `python -m tests.soak` (`make soak`).

No request may be lost, every answer must be that of the version that gave it, and memory, files, threads and /dev/shm
must not grow.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests import onnx_models
from tests.server.running import Running, running
from tests.server.serve_process import SHM

MODEL = "classifier"
CLIENTS = 3
# Of the first quarter of a run to its last: what grows by more leaks.
GROWTH = 1.25


class Clients:
    """Clients that send without a break and hold every answer against ONNX Runtime and the version that gave it."""

    def __init__(self, server: Running, sessions: dict[str, ort.InferenceSession]) -> None:
        self._server = server
        self._sessions = sessions
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(CLIENTS)]
        self.by_version: dict[str, int] = {}
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with grpc.InferenceServerClient(self._server.grpc_url) as client:
            while not self._stop.is_set():
                pixels = rng.normal(size=(int(rng.integers(1, 9)), 3, 8, 8)).astype(np.float32)
                try:
                    version, fault = self._ask(client, pixels), ""
                except InferenceServerException as error:
                    version, fault = "", f"{error.status()}: {error.message()}"
                except AssertionError as error:
                    version, fault = "", f"a wrong answer: {str(error).strip().splitlines()[0]}"
                with self._lock:
                    self.by_version[version] = self.by_version.get(version, 0) + 1
                    if fault:
                        self.faults.append(fault)

    def _ask(self, client: grpc.InferenceServerClient, pixels: Any) -> str:
        tensor = grpc.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        result = client.infer(MODEL, [tensor], client_timeout=30)
        version = str(result.get_response().model_version)
        expected = self._sessions[version].run(None, {"pixels": pixels})[0]
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, rtol=1e-4, atol=1e-6)
        return version


def measure(server: Running) -> dict[str, float]:
    """What the server and its stubs hold: MiB resident, threads and open files of tritonserver; MiB of /dev/shm."""
    process = Path(f"/proc/{server.server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    regions = [region.stat().st_size for region in SHM.glob(f"{server.server.shm_prefix}*")]
    return {
        "resident_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "files": len(list((process / "fd").iterdir())),
        "shm_mib": round(sum(regions) / (1 << 20), 1),
        "regions": len(regions),
    }


def soak(seconds: float, every_s: float) -> dict[str, Any]:
    """Run it; `faults` is empty where all is well."""
    samples: list[dict[str, float]] = []
    sessions: dict[str, ort.InferenceSession] = {}
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / MODEL
        model.mkdir()
        (model / "config.pbtxt").write_text('backend: "pinstream"\ndynamic_batching { }\n')
        _add_version(model, 1, sessions)
        explicit = ["--model-control-mode=explicit", f"--load-model={MODEL}"]
        with running(repositories=[Path(directory)], extra=explicit) as server, Clients(server, sessions) as clients:
            began, version, broken = time.monotonic(), 1, 0
            with grpc.InferenceServerClient(server.grpc_url) as control:
                while time.monotonic() - began < seconds:
                    threading.Event().wait(every_s)
                    version += 1
                    # Every third is broken, and is taken back.
                    if version % 3 == 0:
                        broken += _broken_version_is_refused(model, version, control, clients)
                        continue
                    _add_version(model, version, sessions)
                    control.load_model(MODEL)
                    samples.append(measure(server))
    faults = [*clients.faults[:20], *_growth(samples)]
    return {
        "seconds": round(time.monotonic() - began),
        "requests_by_version": dict(sorted(clients.by_version.items())),
        "reloads": len(samples),
        "broken_versions_refused": broken,
        "samples": samples,
        "faults": faults,
    }


def _add_version(model: Path, version: int, sessions: dict[str, ort.InferenceSession]) -> None:
    """A version with weights of its own, there all at once; that before the last one goes."""
    made = onnx_models.classifier(model.parent / f".{version}" / "model.onnx", seed=version)
    sessions[str(version)] = ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])
    made.parent.rename(model / str(version))
    for old in model.iterdir():
        if old.name.isdecimal() and int(old.name) < version - 3:
            shutil.rmtree(old)


def _broken_version_is_refused(model: Path, version: int, control: grpc.InferenceServerClient, clients: Clients) -> int:
    """Whether a version that cannot be loaded is refused, and the one before serves on."""
    (model / str(version)).mkdir()
    (model / str(version) / "model.onnx").write_bytes(b"broken")
    try:
        control.load_model(MODEL)
    except InferenceServerException:
        before = sum(clients.by_version.values())
        threading.Event().wait(0.5)
        served = sum(clients.by_version.values()) > before and control.is_model_ready(MODEL)
        if not served:
            clients.faults.append(f"a broken version {version} stopped the model")
        return 1
    finally:
        shutil.rmtree(model / str(version))
    clients.faults.append(f"a broken version {version} was taken")
    return 0


def _growth(samples: list[dict[str, float]]) -> list[str]:
    quarter = max(1, len(samples) // 4)
    faults = []
    for name in samples[0] if samples else ():
        first, last = (statistics.median(s[name] for s in part) for part in (samples[:quarter], samples[-quarter:]))
        if last > first * GROWTH + 2:
            faults.append(f"{name} grows: {first} at first, {last} at last")
    return faults


@click.command()
@click.option("--seconds", default=180.0, show_default=True)
@click.option("--every", "every_s", default=10.0, show_default=True, help="Seconds between two versions.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(seconds: float, every_s: float, out: Path | None) -> None:
    """Load a server while its model is replaced again and again."""
    report = soak(seconds, every_s)
    text = json.dumps(report, indent=2) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
