"""Triton requests in, Triton responses out: the plugin's entry, and the one file that knows Triton's Python API.

Triton's Python stub imports this file by itself, from <backends>/pinstream. It calls batching, loop and engines.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
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
from pinstream.dlpack import Bfloat16, DeviceArray, bits_of, from_dlpack
from pinstream.engines import engine_name, find_model_file, inspect, open_for_instance
from pinstream.errors import InvalidRequest, PinstreamError
from pinstream.loop import Answer, Loop
from pinstream.metrics import BatchTimes, Recorder
from pinstream.options import Options
from pinstream.tensors import Array, TensorSpec
from pinstream.trace import Tracer

# Triton's types that a DLPack view cannot carry into NumPy: strings, and what DLPack of this NumPy does not know.
NOT_IN_DLPACK = frozenset({"BYTES", "BOOL"})


class TritonPythonModel:
    """One model instance: its loop, and an engine of its own or its part in one that several instances share."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in inputs, outputs, max_batch_size and dynamic batching from the engine."""
        config = auto_complete_model_config.as_dict()
        options = Options.from_model_config(config)
        missing = complete(config, inspect(find_model_file(Path(pb_utils.get_model_dir()), options), options))
        for tensor in missing.inputs:
            auto_complete_model_config.add_input(_config_entry(tensor))
        for tensor in missing.outputs:
            auto_complete_model_config.add_output(_config_entry(tensor))
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
        _log_to_triton()
        model_file = find_model_file(Path(pb_utils.get_model_dir()), options)
        self._engine = open_for_instance(model_file, options)
        self._spec = self._engine.spec
        complete(config, self._spec)
        self._max_batch_size = max_batch_size(config, self._spec)
        self._dtypes = {tensor.name: tensor.numpy_dtype for tensor in self._spec.inputs}
        self._bf16 = {tensor.name for tensor in (*self._spec.inputs, *self._spec.outputs) if tensor.dtype == "BF16"}
        self._copied_inputs = {tensor.name for tensor in self._spec.inputs if tensor.dtype in NOT_IN_DLPACK}
        on_gpu = engine_name(model_file, options) != "onnxruntime"
        self._recorder = _recorder(args, f"gpu{device}" if on_gpu else "cpu")
        self._tracer = Tracer.from_environment(self._name)
        self._loop = Loop(self._engine, self._observe)
        self._has_parameters = _responses_have_parameters()
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
        return f"{inputs} -> {outputs}, {runs}, {len(self._engine.slots)} slots"

    def _observe(self, times: BatchTimes, ran: Sequence[BatchTimes]) -> None:
        if self._recorder:
            for batch in ran:
                self._recorder.record(batch)
        if self._tracer:
            self._tracer.batch(times)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself: a wrong one gets INVALID_ARGUMENT, its neighbours their results."""
        began = time.perf_counter()
        responses = self._answer(requests)
        if self._tracer:
            self._tracer.span("execute", began, time.perf_counter(), items=len(requests))
        return responses

    def _answer(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        checked: list[Request] = []
        places: list[int] = []
        for i, request in enumerate(requests):
            try:
                checked.append(self._check(request))
                places.append(i)
            except InvalidRequest as error:
                responses[i] = _error(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:
                responses[i] = self._unexpected(error)
        try:
            for place, answer in zip(places, self._loop.run(checked), strict=True):
                responses[place] = self._respond(answer)
        except Exception as error:
            for place in places:
                responses[place] = self._unexpected(error)
        return responses

    def _check(self, request: Any) -> Request:
        inputs = {tensor.name(): self._array(tensor) for tensor in request.inputs()}
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
            return np.asarray(tensor.as_numpy())
        return np.from_dlpack(tensor)

    def _respond(self, answer: Answer) -> Any:
        if answer.cancelled:
            return _error("the request was cancelled by its sender", pb_utils.TritonError.CANCELLED)
        if answer.error is not None:
            lost = bool(self._engine.failure)
            # `pinstream serve` looks for the mark, since Triton goes on calling the model ready.
            mark = "LOST " if lost and not self._engine.recovers else ""
            if mark != self._logged:
                pb_utils.Logger.log_error(f"[pinstream] {mark}{self._name}: {answer.error}")
            self._logged = mark if lost else None
            return _error(
                str(answer.error), pb_utils.TritonError.UNAVAILABLE if lost else pb_utils.TritonError.INTERNAL
            )
        self._logged = None
        tensors = [self._tensor(name, array) for name, array in answer.outputs.items()]
        if not self._has_parameters or answer.times is None:
            return pb_utils.InferenceResponse(tensors)
        split = {f"pinstream_{stage}_us": round(s * 1e6) for stage, s in answer.times.stages.items()}
        return pb_utils.InferenceResponse(tensors, parameters=split)

    def _tensor(self, name: str, array: Array | DeviceArray) -> Any:
        array = array if isinstance(array, DeviceArray) else np.ascontiguousarray(array)
        if name in self._bf16:
            return pb_utils.Tensor.from_dlpack(name, Bfloat16(array))
        return (pb_utils.Tensor.from_dlpack if isinstance(array, DeviceArray) else pb_utils.Tensor)(name, array)

    def _unexpected(self, error: Exception) -> Any:
        # The traceback is for the server's log; the client gets what it can act on.
        pb_utils.Logger.log_error(f"[pinstream] {''.join(traceback.format_exception(error))}")
        text = str(error) if isinstance(error, PinstreamError) else f"internal error ({type(error).__name__})"
        return _error(f"{text}; see the server's log", pb_utils.TritonError.INTERNAL)

    def is_ready(self) -> bool:
        """Whether requests can be answered; asked by Tritons of March 2026 and later, not before."""
        # An engine that comes back with the next request must be sent one.
        return not self._engine.failure or self._engine.recovers

    def finalize(self) -> None:
        """Free the engine; also called after an initialize that failed half-way."""
        for part in (getattr(self, name, None) for name in ("_recorder", "_engine", "_tracer")):
            if part is not None:
                part.close()


def _make_metric(name: str, kind: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Any:
    found = getattr(pb_utils.MetricFamily, kind.upper(), None)
    if found is None:  # no histograms before August 2024
        return None
    family = _FAMILIES.setdefault(name, pb_utils.MetricFamily(name=name, description=description, kind=found))
    return family.Metric(labels=dict(labels), **({"buckets": list(buckets)} if buckets else {}))


# A family must outlive its series.
_FAMILIES: dict[str, Any] = {}


def _recorder(args: dict[str, str], device: str) -> Recorder | None:
    """Records into Triton's metrics, or nothing where the server was started without them."""
    labels = {"model": args["model_name"], "version": args["model_version"], "device": device}
    try:
        return Recorder(_make_metric, labels)
    except pb_utils.TritonModelException as error:
        pb_utils.Logger.log_info(f"[pinstream] no metrics: {error}")
        return None


def _responses_have_parameters() -> bool:
    """Whether this Triton lets a response carry parameters (2025-01 and later)."""
    try:
        pb_utils.InferenceResponse([], parameters={})
    except TypeError:
        return False
    return True


class _TritonHandler(logging.Handler):
    """Puts pinstream's log records into Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        triton = pb_utils.Logger
        levels = {logging.ERROR: triton.log_error, logging.WARNING: triton.log_warn, logging.INFO: triton.log_info}
        levels.get(record.levelno, triton.log_verbose)(f"[pinstream] {record.getMessage()}")


def _log_to_triton() -> None:
    logger = logging.getLogger("pinstream")
    if not logger.handlers:
        logger.addHandler(_TritonHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _config_entry(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": tensor.config_dtype, "dims": list(tensor.shape)}


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
