"""A server whose one model is loaded again with other settings, as often as it takes."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import tritonclient.grpc as grpc
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.interleave import Interleaver, Plan
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.target import ServedModel, Target
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.serve import serving
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.tuning.model import Tuned, place
from pinstream_cli.tuning.settings import Settings
from pinstream_cli.tuning.trial import CannotLoad

LOAD_TIMEOUT_S = 300.0
TRANSPORT = "grpc+shm"
# After so many windows that others disturbed all the same, they are taken as they come.
DISTURBED_IN_A_ROW = 5


@dataclass(frozen=True)
class Requests:
    """What is sent.

    Attributes:
        batch: Items of a request.
        shapes: Item shapes of inputs that have dynamic dimensions.
    """

    batch: int
    shapes: Mapping[str, tuple[int, ...]]


class Bench:
    """Loads the model and measures it.

    Args:
        server: Where it is served.
        client: A connection that may load models.
        tuned: The model.
        requests: What is sent to it.
        plan: How windows are measured.
        measured: What sends the load.
        scratch: For the inputs.

    Attributes:
        never_quiet: Whether others disturbed so many windows in a row, and their repetitions, that they are taken as
            they come since.
    """

    def __init__(
        self,
        server: Target,
        client: grpc.InferenceServerClient,
        tuned: Tuned,
        requests: Requests,
        plan: Plan,
        measured: Client,
        scratch: Path,
    ) -> None:
        self._server = server
        self._client = client
        self._tuned = tuned
        self._requests = requests
        self._plan = plan
        self._windows = Interleaver(plan)
        self._measured = measured
        self._scratch = scratch
        self._loaded: Settings | None = None
        self._model: ServedModel | None = None
        self._subjects: dict[int, Served] = {}
        self._disturbed = 0
        self.never_quiet = False

    def load(self, settings: Settings, concurrency: int) -> None:
        """Load the model with some settings, and warm it up with so many requests under way.

        Nothing where it is loaded so.

        Raises:
            CannotLoad: The server says why.
            CommandError: It does not unload what was loaded, or it has ended.
        """
        if settings == self._loaded:
            return
        self._plan.progress(f"{self._tuned.name}: loading it: {settings}")
        self._unload()
        config = json_format.MessageToDict(settings.apply(self._tuned.config), preserving_proto_field_name=True)
        name = self._tuned.name
        try:
            self._client.load_model(name, config=json.dumps({**config, "name": name}), client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise CannotLoad(str(error.message()).split("\n", 1)[0]) from None
        self._loaded = settings
        self._model = self._server.served(name, self._tuned.version)
        # A subject makes its windows as long as the slowest so far needed. So those of other settings are forgotten,
        # and the one that finds the model cold is not kept.
        self._subjects.clear()
        # Where so many are refused, fewer may not be: that is seen when it is measured.
        with contextlib.suppress(CommandError):
            self._make_subject(concurrency).measure(self._plan.window_s)

    def _unload(self) -> None:
        # One after the other: two would share the device, and a shared engine would outlive its settings.
        if self._loaded is None:
            return
        self._loaded = None
        with self._asking():
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
        with self._asking():
            index = self._client.get_model_repository_index()
        return next((str(model.state) for model in index.models if model.name == self._tuned.name), "UNAVAILABLE")

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            raise CommandError(
                f"the server does not answer: {error.message()}; run tune again, and where it comes to this again, "
                "see what `pinstream serve` says of the model"
            ) from None

    def measure(self, concurrency: int) -> Sample:
        """One window of requests, `concurrency` of them under way at a time; again where others disturbed it."""
        sample = self._windows.quiet_window(self._subject(concurrency), str(self._loaded))
        self._disturbed = self._disturbed + 1 if sample.foreign > self._plan.foreign_limit else 0
        if self._disturbed == DISTURBED_IN_A_ROW:
            # What is lost by measuring everything again is more than it brings.
            self._windows = Interleaver(replace(self._plan, attempts=1))
            self.never_quiet = True
        return sample

    def _subject(self, concurrency: int) -> Served:
        """The same for all windows of the settings that are loaded."""
        if concurrency not in self._subjects:
            self._subjects[concurrency] = self._make_subject(concurrency)
        return self._subjects[concurrency]

    def _make_subject(self, concurrency: int) -> Served:
        return Served(
            self._measured, TRANSPORTS[TRANSPORT], replace(self._sent, concurrency=concurrency), self.model.name
        )

    @cached_property
    def _sent(self) -> Load:
        """One request at a time; it does not depend on the settings, and its file is written once."""
        model = self.model
        item = random_item(model.spec, self._requests.shapes)
        return replace(Load.of(model.name, model.spec, item, self._scratch / "input.json"), batch=self._requests.batch)

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
def bench(tuned: Tuned, requests: Requests, plan: Plan, console: Console) -> Iterator[Bench]:
    """A server with nothing loaded; see Bench.

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
        yield Bench(server, client, placed, requests, plan, Client(tool, server, ends=plan.ends), scratch)
