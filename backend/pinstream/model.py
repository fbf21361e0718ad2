"""Triton requests in, Triton responses out: the plugin's entry, and the file that knows Triton's Python API.

Triton's Python stub imports this file by itself, from <backends>/pinstream. It calls batching, loop and engines.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if "pinstream" not in sys.modules:
    # The stub has put this file's directory on sys.path.
    import pinstream_package

    pinstream_package.import_beside(__file__)

import numpy as np
import triton_python_backend_utils as pb_utils

from pinstream.autocomplete import complete, max_batch_size
from pinstream.batching import Request, check_request
from pinstream.dlpack import DeviceArray, bits_of, from_dlpack, handed_over
from pinstream.engines import Engine, engine_name, inspect, open_for_instance, served_model_file
from pinstream.errors import InvalidRequest, ModelFileError, NoLongerThere
from pinstream.executions import Executions, Finish
from pinstream.loop import Answer, Loop, Run
from pinstream.metrics import BatchTimes
from pinstream.options import Options
from pinstream.references import References, by_reference, referring
from pinstream.tensors import Array
from pinstream.trace import Tracer
from pinstream.triton_answers import have_parameters, refusal, refused, send, senders_of, unexpected
from pinstream.triton_reports import log_to_triton, recorder
from pinstream.triton_tensors import leave_out_copies

# Triton's types that a DLPack view cannot carry into NumPy: strings, and what DLPack of this NumPy does not know.
NOT_IN_DLPACK = frozenset({"BYTES", "BOOL"})


class TritonPythonModel:
    """One model instance: its loop, and an engine of its own or its part in one that several instances share."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in inputs, outputs, max_batch_size and dynamic batching from the engine."""
        config = auto_complete_model_config.as_dict()
        options = Options.from_model_config(config)
        missing = complete(config, inspect(served_model_file(Path(pb_utils.get_model_dir()), options), options))
        for tensor in missing.inputs:
            auto_complete_model_config.add_input(missing.entry(tensor))
        for tensor in missing.outputs:
            auto_complete_model_config.add_output(missing.entry(tensor))
        if missing.max_batch_size is not None:
            auto_complete_model_config.set_max_batch_size(missing.max_batch_size)
        if missing.dynamic_batching:
            auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine and hold it against the configuration."""
        self._name = args["model_instance_name"]
        config = json.loads(args["model_config"])
        device = max(0, int(args["model_instance_device_id"]))
        options = Options.from_model_config(config, device, args["model_instance_kind"])
        log_to_triton()
        leave_out_copies()
        model_file = served_model_file(Path(pb_utils.get_model_dir()), options)
        self._engines: list[Engine] = []
        for _ in range(options.executions):
            self._engines.append(open_for_instance(model_file, options))
        self._other_instances = options.instances > 1
        self._spec = self._engines[0].spec
        if any(engine.spec != self._spec for engine in self._engines):
            raise ModelFileError(f"{model_file} was replaced while it was loaded; load the model again")
        complete(config, self._spec)
        referred = by_reference(options.by_reference, self._spec)
        self._references = References(referred)
        self._max_batch_size = max_batch_size(config, self._spec)
        self._dtypes = {t.name: t.numpy_dtype for t in (*self._spec.inputs, *map(referring, referred))}
        self._bf16 = {tensor.name for tensor in (*self._spec.inputs, *self._spec.outputs) if tensor.dtype == "BF16"}
        self._copied_inputs = {tensor.name for tensor in self._spec.inputs if tensor.dtype in NOT_IN_DLPACK}
        on_gpu = engine_name(model_file, options) != "onnxruntime"
        self._recorder = recorder(args, f"gpu{device}" if on_gpu else "cpu")
        names = [f"{self._name}.{i}" for i in range(len(self._engines))] if len(self._engines) > 1 else [self._name]
        self._tracers = [Tracer.from_environment(name) for name in names]
        observers = [partial(self._observe, tracer) for tracer in self._tracers]
        self._loops = [Loop(engine, observe) for engine, observe in zip(self._engines, observers, strict=True)]
        self._executions = Executions(self._loops) if len(self._loops) > 1 else None
        self._has_parameters = have_parameters()
        self._logged: str | None = None  # the mark of the last error, where its engine had failed
        pb_utils.Logger.log_info(f"[pinstream] {self._name}: {model_file.name}, {self._describe()}")
        # What is loaded stays: the collector of garbage must not look through it again and again, between two batches.
        gc.freeze()

    def _describe(self) -> str:
        inputs, outputs = (", ".join(map(str, tensors)) for tensors in (self._spec.inputs, self._spec.outputs))
        sizes = self._spec.batch
        runs = (
            f"batches of {'up to ' if sizes.exact else ''}{', '.join(map(str, sizes.buckets))}" if sizes else "no batch"
        )
        return f"{inputs} -> {outputs}, {runs}, {len(self._engines[0].slots)} slots"

    def _observe(self, tracer: Tracer | None, times: BatchTimes, ran: Sequence[BatchTimes]) -> None:
        if self._recorder:
            for batch in ran:
                self._recorder.record(batch)
        if tracer:
            tracer.batch(times)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer every request by itself: a wrong one gets INVALID_ARGUMENT, its neighbours their results.

        Returns:
            None where each answer goes out by its request's own sender, once it is there.
        """
        lone = self._lone_loop()
        senders = senders_of(requests) if self._executions and not lone else None
        if self._executions is None or senders is None:
            return self._finish(self._start(lone or self._loops[0], requests))

        def start(loop: Loop) -> Finish:
            batch = self._start(loop, requests)
            return lambda: send(senders, self._finish(batch), self._name)

        self._executions.run(start)
        return None

    def _lone_loop(self) -> Loop | None:
        """A loop for requests that nothing else is under way beside: answered from here they are so sooner."""
        # Whatever comes meanwhile goes to another instance. A single one would not see that there is something.
        seems_so = self._other_instances and all(engine.alone for engine in self._engines)
        return self._executions.idle() if self._executions and seems_so else None

    def _start(self, loop: Loop, requests: list[Any]) -> _Batch:
        """Send what is right of the requests on its way."""
        batch = _Batch(loop, [None] * len(requests), time.perf_counter())
        checked: list[Request] = []
        for i, request in enumerate(requests):
            try:
                checked.append(self._check(request))
                batch.places.append(i)
            except (InvalidRequest, NoLongerThere) as error:
                batch.responses[i] = refused(error)
            except Exception as error:
                batch.responses[i] = unexpected(error)
        try:
            batch.run = loop.start(checked)
        except Exception as error:
            batch.fail(error)
        return batch

    def _finish(self, batch: _Batch) -> list[Any]:
        """Wait for the answers."""
        try:
            if batch.run:
                for place, answer in zip(batch.places, batch.loop.finish(batch.run), strict=True):
                    batch.responses[place] = self._respond(answer, batch.loop.engine)
        except Exception as error:
            batch.fail(error)
        if tracer := self._tracers[self._loops.index(batch.loop)]:
            tracer.span("execute", batch.began, time.perf_counter(), items=len(batch.responses))
        return batch.responses

    def _check(self, request: Any) -> Request:
        inputs = self._references.resolve({tensor.name(): self._array(tensor) for tensor in request.inputs()})
        items = check_request(inputs, self._spec, self._max_batch_size)
        return Request(inputs, items, frozenset(request.requested_output_names()), request.is_cancelled)

    def _array(self, tensor: Any) -> Array | DeviceArray:
        """A tensor of Triton's as an array: a view of its own memory, wherever NumPy or DLPack can hold one."""
        if not tensor.is_cpu():
            dtype = self._dtypes.get(tensor.name())
            if dtype is None:
                raise InvalidRequest(f"the model has no input '{tensor.name()}'; it takes {', '.join(self._dtypes)}")
            return from_dlpack(tensor, dtype)
        if tensor.name() in self._bf16:
            return bits_of(tensor)
        if tensor.name() in self._copied_inputs:
            return np.array(tensor.as_numpy())
        return np.from_dlpack(tensor)

    def _respond(self, answer: Answer, engine: Engine) -> Any:
        if answer.cancelled:
            return refusal("the request was cancelled by its sender", pb_utils.TritonError.CANCELLED)
        if answer.error is not None:
            lost = bool(engine.failure)
            # `pinstream serve` looks for the mark, since Triton goes on calling the model ready.
            mark = "LOST " if lost and not engine.recovers else ""
            if mark != self._logged:
                pb_utils.Logger.log_error(f"[pinstream] {mark}{self._name}: {answer.error}")
            self._logged = mark if lost else None
            code = pb_utils.TritonError.UNAVAILABLE if lost else pb_utils.TritonError.INTERNAL
            return refusal(str(answer.error), code)
        self._logged = None
        tensors = [self._tensor(name, array) for name, array in answer.outputs.items()]
        if not self._has_parameters or answer.times is None:
            return pb_utils.InferenceResponse(tensors)
        split = {f"pinstream_{stage}_us": round(s * 1e6) for stage, s in answer.times.stages.items()}
        return pb_utils.InferenceResponse(tensors, parameters=split)

    def _tensor(self, name: str, array: Array | DeviceArray) -> Any:
        array = array if isinstance(array, DeviceArray) else np.ascontiguousarray(array)
        if isinstance(array, np.ndarray) and name not in self._bf16:
            return pb_utils.Tensor(name, array)
        return handed_over(array, partial(pb_utils.Tensor.from_dlpack, name), bfloat16=name in self._bf16)

    def is_ready(self) -> bool:
        """Whether requests can be answered; asked by Tritons of March 2026 and later, not before."""
        # An engine that comes back with the next request must be sent one.
        return all(not engine.failure or engine.recovers for engine in self._engines)

    def finalize(self) -> None:
        """Free the engine; also called after an initialize that failed half-way."""
        parts = (getattr(self, name, None) for name in ("_executions", "_recorder"))
        for part in (*parts, *getattr(self, "_engines", ()), *getattr(self, "_tracers", ())):
            if part is not None:
                part.close()


@dataclass
class _Batch:
    """Requests between their start in a loop and their answers.

    Attributes:
        loop: That they run through.
        responses: One for each; None where there is none yet.
        began: When, by time.perf_counter.
        places: Of those that run, in their order.
        run: None where they could not be started.
    """

    loop: Loop
    responses: list[Any]
    began: float
    places: list[int] = field(default_factory=list)
    run: Run | None = None

    def fail(self, error: Exception) -> None:
        """Answer all that ran with what nobody foresaw."""
        for place in self.places:
            self.responses[place] = unexpected(error)
