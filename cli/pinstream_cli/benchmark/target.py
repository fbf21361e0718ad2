"""The server under test: started as `pinstream serve` does, less the limits on its queues, or one that runs already."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import tritonclient.grpc as grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from pinstream import sidecar as sidecars
from pinstream.engines import find_model_file, inspect
from pinstream.errors import PinstreamError
from pinstream.options import Options
from pinstream.tensors import ModelSpec
from pinstream_cli.benchmark.batches import check_batches
from pinstream_cli.benchmark.cpu import CpuTimes
from pinstream_cli.benchmark.stages import StageTimes
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.serve import serving
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.loads import TRACEBACK
from pinstream_cli.triton.measured import lift_limits, take_tensors
from pinstream_cli.triton.repository import RepositoryError, read_model
from pinstream_cli.triton.sizing import DETECTOR
from pinstream_cli.yolox_graph import is_serving_graph, is_yolox_export
from pinstream_cli.yolox_service import build_apart


@dataclass(frozen=True)
class ServedModel:
    """A model's file, and the name and settings it is served with.

    Attributes:
        file: What the bare loop opens.
        name: On the server.
        options: From the server's configuration of it.
        instances: Model instances.
        spec: What it takes and gives.
    """

    file: Path
    name: str
    options: Options
    instances: int
    spec: ModelSpec


class Target:
    """A running server.

    Args:
        endpoints: Where it listens.
        ours: Whether it is a child of this process, so that its CPU time can be told.
    """

    def __init__(self, endpoints: Endpoints, ours: bool) -> None:
        self._endpoints = endpoints
        self._ours = ours
        self._client = grpc.InferenceServerClient(self.url("grpc"))

    def url(self, protocol: str) -> str:
        """host:port for grpc or http."""
        return f"{self._endpoints.host}:{self._endpoints.grpc if protocol == 'grpc' else self._endpoints.http}"

    def version(self) -> str:
        """The server's own version."""
        return str(self._ask(self._client.get_server_metadata).version)

    def failure(self, model: str) -> str:
        """Why a model could not be loaded; nothing where it was."""
        if self._ask(lambda: self._client.is_model_ready(model)):
            return ""
        index = self._ask(self._client.get_model_repository_index)
        reasons = [str(entry.reason) for entry in index.models if entry.name == model]
        return TRACEBACK.sub("", "; ".join(reasons)) or "Triton does not say why"

    def config(self, model: str) -> dict[str, Any]:
        """A model's configuration, completed by the server, as JSON."""
        answer = self._ask(lambda: self._client.get_model_config(model, as_json=True))
        return dict(answer["config"])

    def images_served(self, model: str) -> int:
        """Items that a model has answered so far."""
        return sum(int(stats.inference_count) for stats in self._statistics(model).model_stats)

    def _statistics(self, model: str) -> Any:
        return self._ask(lambda: self._client.get_inference_statistics(model))

    def stages(self, model: str) -> StageTimes:
        """What the backend's stages of a model have taken so far; nothing for somebody else's server."""
        if not self._ours:
            return StageTimes({})
        with contextlib.suppress(OSError), urlopen(f"http://{self._endpoints.metrics_url}/metrics", timeout=5) as page:
            return StageTimes.of(page.read().decode(), model)
        return StageTimes({})

    def steps(self, model: str) -> StageTimes:
        """What the steps of an ensemble have taken so far; nothing for another model."""
        steps = self.config(model).get("ensemble_scheduling", {}).get("step", [])
        names = dict.fromkeys(step["model_name"] for step in steps)
        return StageTimes.of_steps({name: self._statistics(name).model_stats[0].inference_stats for name in names})

    def cpu_ms_per_image(self, used: CpuTimes, images: int) -> dict[str, float]:
        """CPU milliseconds of an image by process, of what was `used` in between; empty for somebody else's server."""
        if not self._ours or images <= 0:
            return {}
        return {name: seconds * 1e3 / images for name, seconds in used.by_process.items()}

    def served(self, name: str, model_dir: Path) -> ServedModel:
        """A model of this server whose version directory is also here.

        Raises:
            CommandError: Its file or its configuration is not what the bare loop can run.
        """
        config = self.config(name)
        try:
            options = Options.from_model_config(config)
            file = find_model_file(model_dir, options)
            spec = inspect(file, options)
        except PinstreamError as error:
            raise CommandError(f"the bare loop cannot run {name}: {error}") from error
        groups = config.get("instance_group") or [{}]
        instances = sum(int(g.get("count", 1)) * max(1, len(g.get("gpus", []))) for g in groups)
        return ServedModel(file, name, options, instances, spec)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except InferenceServerException as error:
            raise CommandError(f"the server at {self.url('grpc')}: {error.message()}") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@dataclass(frozen=True)
class Source:
    """What to measure, as the command line names it.

    Attributes:
        model: A YOLOX export, a directory made by `pinstream build`, or any ONNX file.
        name: Serve `model` as a plain model of this name; with a repository or a URL, the model's name there.
        repository: A model repository to serve as it is, instead of `model`.
        url: host:port of gRPC of a server that runs already.
        http_url: host:port of its HTTP.
    """

    model: Path | None
    name: str | None = None
    repository: Path | None = None
    url: str | None = None
    http_url: str | None = None

    @property
    def notes(self) -> list[str]:
        """How what is served differs from what `pinstream serve` makes of it."""
        if self.url is not None or self.repository is not None:
            return []
        return ["Its queues have no limits, which `pinstream serve` sets: whatever is sent waits, and is measured."]


@contextlib.contextmanager
def target(
    source: Source,
    console: Console,
    extra: Sequence[Path] = (),
    timeout_s: float = 180.0,
    arguments: Sequence[str] = (),
    batches: Sequence[int] = (),
    ends: float = math.inf,
    tensors: bool = True,
) -> Iterator[tuple[Target, ServedModel]]:
    """The server to be measured, and the model in it that has a bare loop.

    Args:
        source: What to measure.
        console: Where the server's start is shown.
        extra: More model repositories to serve.
        timeout_s: Seconds until every model must be ready.
        arguments: More of tritonserver's own.
        batches: Items of the requests that are to be sent.
        ends: When time is up, by time.monotonic.
        tensors: Whether what is made of `source.model` takes tensors alone, as is sent to it, or references, too.

    Raises:
        CommandError: The model or the server is not fit, or time was up before that could be started.
    """
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        model_dir, name = locate(source, Path(scratch))
        if source.url is not None:
            endpoints, ours = _running(source), contextlib.nullcontext()
        else:
            check_batches(name, _config(source, name), model_dir, batches)
            if time.monotonic() > ends:
                raise CommandError("time was up (--limit) before the server was started; set a larger --limit")
            endpoints = Endpoints.free()
            ours = serving(
                None if source.repository else _what_to_serve(source, model_dir),
                name=None if source.repository else source.name,
                repositories=[*([source.repository] if source.repository else []), *extra],
                endpoints=endpoints,
                extra=arguments,
                # The index of models, with reasons, belongs to the control of models. It is a loopback's.
                access=Access(client_shm=True, control=True),
                prepare=[lift_limits, take_tensors] if tensors else [lift_limits],
                console=console,
                startup_timeout_s=timeout_s,
            )  # type: ignore[assignment]
        with ours, contextlib.closing(Target(endpoints, source.url is None)) as server:
            yield server, server.served(name, model_dir)


def check_named(source: Source) -> None:
    """See before anybody waits for a turn to measure that there is something.

    Raises:
        CommandError: No model is named, or one that is not there.
    """
    if source.repository is not None:
        if source.name is None:
            raise CommandError("--model-repository needs --name, the model in it to measure")
        return
    if source.model is None:
        raise CommandError("nothing to measure; name a model with --model, or --model-repository with --name")
    if not source.model.exists():
        raise CommandError(f"--model {source.model} does not exist; name an ONNX file or what `pinstream build` made")


def locate(source: Source, scratch: Path) -> tuple[Path, str]:
    """The version directory of the model, and its name on the server; a YOLOX export is built in `scratch`."""
    check_named(source)
    if source.repository is not None and source.name is not None:
        versions = [v for v in (source.repository / source.name).glob("[0-9]*") if v.name.isdecimal()]
        if not versions:
            raise CommandError(f"{source.repository / source.name} has no version directory")
        return max(versions, key=lambda version: int(version.name)), source.name
    assert source.model is not None
    if source.model.is_dir():
        return source.model, source.name or _name_of_built(source.model)
    if source.name is None and is_yolox_export(source.model):
        console = Console(stderr=True)
        console.print(f"{source.model.name} is a YOLOX export: building its serving graph")
        build_apart(source.model, scratch / "built")
        return scratch / "built", DETECTOR
    if source.name is None and is_serving_graph(source.model):
        return source.model.parent, DETECTOR
    directory = scratch / "plain"
    directory.mkdir()
    (directory / f"model{source.model.suffix}").symlink_to(source.model.resolve())
    return directory, source.name or source.model.stem


def _name_of_built(directory: Path) -> str:
    """As `pinstream serve` names what `pinstream build` made."""
    try:
        sidecar = sidecars.read(directory / sidecars.FILE_NAME)
    except sidecars.SidecarError as error:
        raise CommandError(f"--model {error}") from error
    return DETECTOR if "yolox" in sidecar.sections else directory.resolve().name


def _config(source: Source, name: str) -> ModelConfig:
    """The configuration that the model has before the server completes it, as far as it counts here."""
    service = source.repository is None and source.name is None and name == DETECTOR
    if source.repository is None and not service:
        return ModelConfig(backend="pinstream")
    try:
        return read_model((source.repository or service_repository()) / name).config
    except RepositoryError as error:
        raise CommandError(f"{name}: {error}") from None


def _what_to_serve(source: Source, model_dir: Path) -> Path | None:
    return model_dir if (model_dir / "model.json").is_file() else source.model


def _running(source: Source) -> Endpoints:
    host, port = _address(source.url or "", 8001, "--url")
    _, http = _address(source.http_url or host, 8000, "--http-url")
    return Endpoints(host, http, port)


def _address(text: str, default_port: int, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(default_port))
    if not host or not port.isdecimal():
        raise CommandError(f"{option} {text} is no HOST:PORT")
    return host, int(port)
