"""Completes the configurations of a run's own models, as the backend would when Triton asks it to.

Triton asks by starting a process for each model, and waits a second until it has ended. For what is complete it need
not ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pinstream.autocomplete import complete
from pinstream.errors import PinstreamError
from pinstream.tensors import ModelSpec, TensorSpec
from pinstream_cli.triton.repository import RepositoryError, read_model, spec_of, write_model

# For tritonserver, where every model is complete.
COMPLETE = "--disable-auto-complete-config"


def complete_model(path: Path) -> ModelSpec | None:
    """Write into a model's config.pbtxt what it lacks.

    Args:
        path: `<repository>/<model>`, a copy that belongs to the run.

    Returns:
        What the model takes and gives; None where only loading it would tell, or something is wrong with it, which
        Triton will say.
    """
    try:
        model = read_model(path)
        spec = spec_of(model)
        if spec is None:
            return None
        missing = complete(model.as_json(), spec)
    except (PinstreamError, RepositoryError, ImportError):
        return None
    config = model.config
    for tensor in missing.inputs:
        config.input.add(**missing.entry(tensor))
    for tensor in missing.outputs:
        config.output.add(**missing.entry(tensor))
    if missing.max_batch_size is not None:
        config.max_batch_size = missing.max_batch_size
    if missing.dynamic_batching:
        config.dynamic_batching.SetInParent()
    write_model(model)
    return spec


def complete_service(repository: Path, detector: str) -> bool:
    """The same for the YOLOX service, whose first step gives what its detector takes, and the last takes what it gives.

    Args:
        repository: The service's models.
        detector: The name of the model that is the network.

    Returns:
        Whether every model is complete.
    """
    spec = complete_model(repository / detector)
    if spec is None:
        return False
    first = read_model(repository / "yolox_preprocess")
    for tensor in spec.inputs:
        first.config.output.add(**_entry(tensor))
    write_model(first)
    last = read_model(repository / "yolox_postprocess")
    for tensor in spec.outputs:
        _fix_input(last.config, tensor)
    write_model(last)
    return True


def _fix_input(config: Any, tensor: TensorSpec) -> None:
    """Give an input its real dimensions: of one with others Triton 2.51 takes sizes that overflow, and ends."""
    if not tensor.is_static:
        return
    warmups = [found for warmup in config.model_warmup for name, found in warmup.inputs.items() if name == tensor.name]
    for found in (*(found for found in config.input if found.name == tensor.name), *warmups):
        found.dims[:] = tensor.shape


def _entry(tensor: TensorSpec) -> dict[str, object]:
    return {"name": tensor.name, "data_type": tensor.config_dtype, "dims": tensor.shape}
