"""Warm-up samples: Triton does not load a model that they do not fit, and may crash where they exceed a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.model_files import readable
from pinstream_cli.doctor.signature import Signature, Tensor
from pinstream_cli.triton.repository import CONFIG, Model, dtype_of

AREA = "model_warmup"


def check_warmup(area: str, model: Model, signature: Signature) -> Iterator[Check]:
    """Hold the samples of a model against what it takes, and their files against the samples.

    Args:
        area: What the checks belong to.
        model: The model.
        signature: What it takes.
    """
    for sample in model.config.model_warmup:
        for fault in _faults(sample, signature):
            yield Check(area, AREA, "FIX", fault, f"correct model_warmup in {CONFIG}")
    entries = [entry for sample in model.config.model_warmup for entry in sample.inputs.values()]
    for name in dict.fromkeys(entry.input_data_file for entry in entries if entry.input_data_file):
        file = model.path / "warmup" / name.lstrip("/")
        found = readable(area, file)
        needed = max(_tensor(entry).least_bytes for entry in entries if entry.input_data_file == name)
        if found.status == "OK" and (size := file.stat().st_size) < needed:
            found = Check(area, found.name, "FIX", f"{size:,} bytes, and the sample has {needed:,}", "write it again")
        yield found


def _faults(sample: Any, signature: Signature) -> Iterator[str]:
    if signature.complete and sample.batch_size > max(1, signature.max_batch_size):
        yield f"batch_size {sample.batch_size} is above max_batch_size, {signature.max_batch_size}"
    wanted = {name for name, tensor in signature.inputs.items() if not tensor.optional}
    if signature.complete and (missing := sorted(wanted - set(sample.inputs))):
        yield f"it lacks {', '.join(missing)}, which the model takes"
    for name, entry in sample.inputs.items():
        tensor, known = _tensor(entry), signature.inputs.get(name)
        if -1 in tensor.dims:
            yield f"{name} has {tensor}: every size has to be given"
        elif known is not None and known.dtype and not known.takes(tensor):
            yield f"{name} has {tensor}, the model takes {known}"
        if entry.WhichOneof("input_data_type") is None:
            yield f"{name} has neither zero_data nor random_data nor input_data_file"


def _tensor(entry: Any) -> Tensor:
    return Tensor(dtype_of(entry), tuple(entry.dims))
