"""What the soak serves: a model whose versions come, go and are broken, and what each of them has to answer."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc

from pinstream.engines.flavour import load_flavour
from pinstream.plans import BuildSpec, build_plan
from pinstream_cli.triton import sizing
from tests import onnx_models
from tests.server.serve_process import Serve

KINDS = ("onnx", "plan")
# How far an answer may be from ONNX Runtime's: plans multiply FP32 in TF32. Of a million rows that are rounded to its
# ten bits of mantissa some thirty are further off than 0.005, and none further than 0.007.
TOLERANCE = {"onnx": 1e-6, "plan": 1e-2}
# As many as a detector of `pinstream serve` has on this machine.
INSTANCES = {
    kind: sizing.instances(len(os.sched_getaffinity(0)), gpu=kind == "plan")[sizing.DETECTOR] for kind in KINDS
}


class Subject(ABC):
    """A model's directory, in which versions come and go; each has weights of its own.

    Attributes:
        model: The model of which there are new versions.
        served: The model that brings it with it, and that clients ask.
        path: The model's directory.
        last: The newest version.

    Args:
        repository: Where it is made.
        kind: What a version is: "onnx", or "plan" for the GPU at hand.
        executions: Of each of its instances; with more than one these have their engine in a process of its own.
    """

    model: str
    served: str

    def __init__(self, repository: Path, kind: str, executions: int) -> None:
        self.kind = kind
        self.executions = executions
        self.path = repository / self.model
        self.last = 0
        self.configure(repository)
        self.add()

    @abstractmethod
    def configure(self, repository: Path) -> None:
        """Write everything but the versions."""

    @abstractmethod
    def make(self, directory: Path, version: int) -> Path:
        """Write the ONNX file `model.onnx` of a version, and what it takes beside it; gives its path."""

    @abstractmethod
    def ask(self, client: grpc.InferenceServerClient, rng: np.random.Generator) -> str:
        """Send a request.

        Returns:
            The version that has answered it.

        Raises:
            AssertionError: It answers something else than it should.
            InferenceServerException: It does not answer.
        """

    @property
    @abstractmethod
    def stubs(self) -> int:
        """How many instances in Python there are."""

    @property
    def engines(self) -> int:
        """How many engines have a process of their own; on a GPU several instances share one by themselves."""
        return int(self.executions > 1 or self.kind == "plan")

    def unused(self, serve: Serve) -> list[str]:
        """What of its ways it has not gone, without which the soak says less than it seems to."""
        return []

    def add(self) -> None:
        """Drop in another version, there all at once; that before the last ones goes."""
        self.last += 1
        made = self.make(self.path.parent / f".{self.last}", self.last)
        if self.kind == "plan":
            build_plan(made, made.parent, BuildSpec(batch_sizes=(1, 8)), load_flavour())
        made.parent.rename(self.path / str(self.last))
        for old in self.path.iterdir():
            if old.name.isdecimal() and int(old.name) < self.last - 3:
                shutil.rmtree(old)

    def reconfigure(self) -> tuple[str, ...]:
        """Change what models beside it are configured with, so that they are loaded anew; those that are."""
        return ()

    def is_reconfigured(self, client: grpc.InferenceServerClient) -> bool:
        """Whether these have been loaded since."""
        return True

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Have a version that cannot be loaded, for a while."""
        self.last += 1
        made = self.path.parent / f".{self.last}"
        made.mkdir()
        (made / f"model.{self.kind}").write_bytes(b"broken")
        made.rename(self.path / str(self.last))
        yield
        shutil.rmtree(self.path / str(self.last))


class Classifier(Subject):
    """A plain model."""

    model = served = "classifier"

    def __init__(self, repository: Path, kind: str, executions: int) -> None:
        self._sessions: dict[str, ort.InferenceSession] = {}
        super().__init__(repository, kind, executions)

    def configure(self, repository: Path) -> None:
        """Write its config.pbtxt."""
        lines = ['backend: "pinstream"', "dynamic_batching { }", f"instance_group [ {{ count: {self.stubs} }} ]"]
        if self.executions > 1:
            for key, value in (("SHARE_ENGINE", "on"), ("EXECUTIONS", self.executions)):
                lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
        self.path.mkdir()
        (self.path / "config.pbtxt").write_text("\n".join(lines) + "\n")

    @property
    def stubs(self) -> int:
        """How many instances in Python there are."""
        return INSTANCES[self.kind]

    def make(self, directory: Path, version: int) -> Path:
        """Write it with weights of the version's own."""
        made = onnx_models.classifier(directory / "model.onnx", seed=version)
        self._sessions[str(version)] = ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])
        return made

    def ask(self, client: grpc.InferenceServerClient, rng: np.random.Generator) -> str:
        """Hold the answer against that of ONNX Runtime for the version that the answer names."""
        pixels = rng.normal(size=(int(rng.integers(1, 9)), 3, 8, 8)).astype(np.float32)
        result = infer(client, self.served, {"pixels": pixels}, ["probabilities"])
        version = str(result.get_response().model_version)
        expected = self._sessions[version].run(None, {"pixels": pixels})[0]
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, rtol=1e-4, atol=TOLERANCE[self.kind])
        return version


def infer(client: grpc.InferenceServerClient, model: str, inputs: dict[str, Any], outputs: list[str]) -> Any:
    """One request, which has a minute."""
    tensors = []
    for name, value in inputs.items():
        dtype = "BYTES" if value.dtype == object else "UINT8" if value.dtype == np.uint8 else "FP32"
        tensors.append(grpc.InferInput(name, list(value.shape), dtype))
        tensors[-1].set_data_from_numpy(value)
    wanted = [grpc.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, tensors, outputs=wanted, client_timeout=60)
