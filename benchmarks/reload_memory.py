"""What tritonserver keeps of every load of a model: of a plain Python model, and of models behind pinstream.

    python -m benchmarks.reload_memory --out benchmarks/results/reload-memory-cpu.json
    python -m benchmarks.reload_memory --kind python --kind plan --out ...          on a GPU

All take and give tensors of the same shapes, and are loaded, asked and unloaded side by side, each by its own server:
once unloaded before each load, and once as a version that takes the place of the one before, as in `make soak`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput

from benchmarks.outcome import about, write
from pinstream.engines.flavour import load_flavour
from pinstream.plans import BuildSpec, build_plan
from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Access, Endpoints

MODEL, REQUESTS, PATIENCE_S = "model", 20, 60.0
PLAIN = """backend: "python"
max_batch_size: 8
input { name: "pixels" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }
"""
CODE = """import numpy as np
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        pixels = [utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        rows = [p.reshape(len(p), -1)[:, :10] for p in pixels]
        return [utils.InferenceResponse([utils.Tensor("probabilities", np.ascontiguousarray(r))]) for r in rows]
"""
COUNTERS = """
    def initialize(self, args):
        self.made = []
        for i in range(6):
            family = utils.MetricFamily(name=f"counter_{i}", description="counts", kind=utils.MetricFamily.COUNTER)
            self.made.append((family, family.Metric(labels={"model": "model", "version": "1"})))
            self.made[-1][1].increment(1)
"""


def plain(directory: Path) -> None:
    """A Python model, with nothing of pinstream in it."""
    (directory / "config.pbtxt").write_text(PLAIN)
    (directory / "1" / "model.py").write_text(CODE)


def counters(directory: Path) -> None:
    """The same with the dynamic batcher that pinstream asks for, and as many metrics of its own as it has."""
    plain(directory)
    (directory / "config.pbtxt").write_text(PLAIN + "dynamic_batching { }\n")
    (directory / "1" / "model.py").write_text(CODE + COUNTERS)


def pinstream(directory: Path) -> None:
    """A matrix product as ONNX."""
    (directory / "config.pbtxt").write_text('backend: "pinstream"\n')
    weights = numpy_helper.from_array(np.ones((192, 10), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["probabilities"]),
    ]
    tensors = [("pixels", ["batch", 3, 8, 8]), ("probabilities", ["batch", 10])]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in tensors)
    graph = helper.make_graph(nodes, "graph", [given], [made], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, directory / "1" / "model.onnx")


def executions(directory: Path) -> None:
    """The same, its engine in a process of its own, three requests under way in its instance: as on a GPU."""
    pinstream(directory)
    values = {"SHARE_ENGINE": "on", "EXECUTIONS": "3"}
    lines = (f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items())
    (directory / "config.pbtxt").write_text('backend: "pinstream"\n' + "".join(lines))


def plan(directory: Path) -> None:
    """As executions, as plans for the GPU at hand."""
    executions(directory)
    build_plan(directory / "1" / "model.onnx", directory / "1", BuildSpec(batch_sizes=(1, 8)), load_flavour())


KINDS: dict[str, Callable[[Path], None]] = {
    "python": plain,
    "counters": counters,
    "pinstream": pinstream,
    "executions": executions,
    "plan": plan,
}
WITHOUT_A_GPU = ("python", "counters", "pinstream", "executions")
WAYS = ("unloaded", "versions")


def resident(pid: int) -> dict[str, float]:
    """MiB resident of a process: of its own, of files, of shared memory; and its threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"anonymous": "RssAnon", "files": "RssFile", "shared": "RssShmem", "all": "VmRSS"}
    mib = {f"{name}_mib": round(int(status[field].split()[0]) / 1024, 2) for name, field in names.items()}
    return {**mib, "threads": int(status["Threads"])}


def stubs(pid: int) -> list[str]:
    """Processes that any thread of `pid` has started and that still run."""
    found: list[str] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += listing.read_text().split()
    return found


def next_version(directory: Path, last: int) -> None:
    """Drop in a version like the one before, there all at once; the one before that goes."""
    shutil.copytree(directory / str(last), directory.parent / ".next")
    (directory.parent / ".next").rename(directory / str(last + 1))
    shutil.rmtree(directory / str(last - 1), ignore_errors=True)


def reload(kind: str, loads: int, way: str, run: int) -> dict[str, Any]:
    """Load a model `loads` times; what tritonserver holds after the requests of each."""
    samples = []
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path) / MODEL
        (directory / "1").mkdir(parents=True)
        KINDS[kind](directory)
        endpoints, console = Endpoints.free(), Console(file=io.StringIO())
        extra = ["--model-control-mode=explicit", f"--load-model={MODEL}"]
        access = Access(control=True)
        with (
            serving(
                None, repositories=[Path(path)], endpoints=endpoints, access=access, extra=extra, console=console
            ) as server,
            InferenceServerClient(endpoints.grpc_url) as client,
        ):
            pixels = InferInput("pixels", [8, 3, 8, 8], "FP32")
            pixels.set_data_from_numpy(np.ones((8, 3, 8, 8), np.float32))
            for number in range(1, loads + 1):
                if way == "unloaded":
                    client.unload_model(MODEL)
                    _wait(lambda: not stubs(server.pid))
                else:
                    next_version(directory, number)
                client.load_model(MODEL)
                _wait(lambda: len(stubs(server.pid)) == 1)
                for _ in range(REQUESTS):
                    client.infer(MODEL, [pixels])
                samples.append(resident(server.pid))
                print(kind, way, run, json.dumps(samples[-1]), flush=True)
    return {"kind": kind, "way": way, "run": run, "samples": samples}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("an unloaded model's process does not end")
        time.sleep(0.05)


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """MiB a load, by a straight line through the second half of the samples."""
    half = samples[len(samples) // 2 :]
    return {
        name: round(float(np.polyfit(range(len(half)), [sample[name] for sample in half], 1)[0]), 4)
        for name in samples[0]
    }


def main() -> None:
    """Measure it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind", dest="kinds", action="append", choices=list(KINDS), help=f"by default {WITHOUT_A_GPU}"
    )
    parser.add_argument("--loads", type=int, default=60, help="four or more")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = []
    for way, run in itertools.product(WAYS, range(given.runs)):
        kinds = given.kinds or WITHOUT_A_GPU
        with ThreadPoolExecutor(len(kinds)) as pool:
            found += list(pool.map(lambda kind, way=way, run=run: reload(kind, given.loads, way, run), kinds))
    for report in found:
        report["growth_of_second_half_a_load"] = growth(report["samples"])
    report = {**about(), "model": MODEL, "requests_a_load": REQUESTS, "reports": found}
    write(report, given.out)


if __name__ == "__main__":
    main()
