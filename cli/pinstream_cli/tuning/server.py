"""A server whose one model is loaded again with other settings, as often as it takes."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tritonclient.grpc as grpc
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from pinstream_cli.benchmark.inputs import random_item, write_json
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.serve import largest_output
from pinstream_cli.benchmark.target import ServedModel, Target
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.serve import serving
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.tuning.model import Tuned, place
from pinstream_cli.tuning.search import CannotLoad
from pinstream_cli.tuning.settings import Settings

LOAD_TIMEOUT_S = 300.0
TRANSPORT = "grpc+shm"


class Bench:
    """Loads the model and measures it.

    Args:
        server: Where it is served.
        client: A connection that may load models.
        tuned: The model.
        measured: What sends the load.
        scratch: For the inputs.

    Attributes:
        window_s: Seconds of a window.
        batch: Items of a request.
        shapes: Item shapes of inputs that have dynamic dimensions.
    """

    def __init__(
        self, server: Target, client: grpc.InferenceServerClient, tuned: Tuned, measured: Client, scratch: Path
    ) -> None:
        self._server = server
        self._client = client
        self._tuned = tuned
        self._measured = measured
        self._scratch = scratch
        self._loaded: Settings | None = None
        self._model: ServedModel | None = None
        self.window_s = 1.0
        self.batch = 1
        self.shapes: dict[str, tuple[int, ...]] = {}

    def load(self, settings: Settings) -> None:
        """Load the model with some settings; nothing where it is loaded so.

        Raises:
            CannotLoad: The server says why.
        """
        if settings == self._loaded:
            return
        self._unload()
        config = json_format.MessageToDict(settings.apply(self._tuned.config), preserving_proto_field_name=True)
        name = self._tuned.name
        try:
            self._client.load_model(name, config=json.dumps({**config, "name": name}), client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise CannotLoad(str(error.message()).split("\n", 1)[0]) from None
        self._loaded = settings
        self._model = self._server.served(name, self._tuned.version)

    def _unload(self) -> None:
        # One after the other: two would share the device, and a shared engine would outlive its settings.
        if self._loaded is None:
            return
        self._loaded = None
        self._client.unload_model(self._tuned.name)
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while (state := self._state()) != "UNAVAILABLE":
            if time.monotonic() > deadline:
                raise CommandError(
                    f"'{self._tuned.name}' is {state} {LOAD_TIMEOUT_S:.0f} s after it was to be unloaded; "
                    "look into the server's log for what holds it, and run tune again"
                )
            time.sleep(0.05)

    def _state(self) -> str:
        index = self._client.get_model_repository_index()
        return next((str(model.state) for model in index.models if model.name == self._tuned.name), "UNAVAILABLE")

    def measure(self, concurrency: int) -> Sample:
        """One window of requests, `concurrency` of them under way at a time."""
        return self._subject(concurrency).measure(self.window_s)

    def _subject(self, concurrency: int) -> Served:
        model = self.model
        item = random_item(model.spec, self.shapes)
        file = self._scratch / "input.json"
        load = Load(
            model=model.name,
            batch=self.batch,
            concurrency=concurrency,
            input_data=file if file.is_file() else write_json(file, [item]),
            inputs=tuple(item),
            outputs=tuple(tensor.name for tensor in model.spec.outputs),
            output_bytes=largest_output(model),
        )
        return Served(self._measured, TRANSPORTS[TRANSPORT], load)

    @property
    def model(self) -> ServedModel:
        """The model as it was loaded last.

        Raises:
            CommandError: It never was.
        """
        if self._model is None:
            raise CommandError(f"{self._tuned.name} is not loaded")
        return self._model


@contextlib.contextmanager
def bench(tuned: Tuned, console: Console) -> Iterator[Bench]:
    """A server with nothing loaded.

    Raises:
        CommandError: The machine or perf_analyzer is not fit.
    """
    tool = find_perf_analyzer(lambda text: console.print(text))
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-tune-")))
        placed = place(tuned, scratch / "models")
        endpoints = Endpoints.free()
        stack.enter_context(
            serving(
                None,
                repositories=[scratch / "models"],
                endpoints=endpoints,
                extra=["--model-control-mode=explicit"],
                access=Access(client_shm=True, control=True),
                console=Console(quiet=True),
            )
        )
        server = stack.enter_context(contextlib.closing(Target(endpoints, ours=True)))
        client = stack.enter_context(contextlib.closing(grpc.InferenceServerClient(endpoints.grpc_url)))
        yield Bench(server, client, placed, Client(tool, server), scratch)
