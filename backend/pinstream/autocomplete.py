"""Completes and checks a model configuration against the engine. Knows config.pbtxt's terms, but not Triton's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pinstream.errors import ConfigError
from pinstream.options import Options
from pinstream.references import by_reference, referring
from pinstream.tensors import ModelSpec, TensorSpec

# A model with one of these decides itself how requests become batches.
SCHEDULERS = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


@dataclass(frozen=True)
class Completion:
    """What a configuration lacks.

    Attributes:
        inputs: Inputs it does not name.
        outputs: Outputs it does not name.
        max_batch_size: To be set, or None where it is configured or there is no batch dimension.
        dynamic_batching: Whether to turn dynamic batching on.
        optional: Names of the inputs that a request may leave out, since there is another for them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None
    dynamic_batching: bool
    optional: frozenset[str] = frozenset()

    def entry(self, tensor: TensorSpec) -> dict[str, Any]:
        """The field for one of the inputs or outputs, as config.pbtxt has it."""
        field = {"name": tensor.name, "data_type": tensor.config_dtype, "dims": list(tensor.shape)}
        return field | {"optional": True} if tensor.name in self.optional else field


def complete(config: Mapping[str, Any], spec: ModelSpec) -> Completion:
    """Work out what `config` lacks, and hold what it has against the engine.

    Args:
        config: The model configuration as Triton's JSON.
        spec: The engine.

    Raises:
        ConfigError: The two disagree; the text shows both sides.
    """
    for field in ("batch_input", "batch_output"):
        if config.get(field):
            raise ConfigError(f"config.pbtxt has {field}, which pinstream does not do; leave it out")
    if (config.get("model_transaction_policy") or {}).get("decoupled"):
        raise ConfigError("config.pbtxt has decoupled, and pinstream gives one response a request; leave it out")
    if any(group.get("passive") for group in config.get("instance_group") or []):
        raise ConfigError(
            "config.pbtxt has passive in instance_group: such an instance takes no request, and where there is no "
            "other, the first request ends tritonserver; leave it out"
        )
    configured = int(config.get("max_batch_size", 0))
    if configured and spec.batch is None:
        raise ConfigError(
            f"config.pbtxt has max_batch_size {configured}, but the model has no batch dimension "
            f"({_describe(spec.inputs)} -> {_describe(spec.outputs)}); set max_batch_size: 0 "
            "or export the model with one"
        )
    referred = by_reference(Options.from_model_config(config).by_reference, spec)
    references = tuple(map(referring, referred))
    optional = frozenset(tensor.name for tensor in (*referred, *references))
    _check_optional(config.get("input") or [], optional)
    missing_inputs = _missing("input", config.get("input") or [], spec.inputs + references)
    missing_outputs = _missing("output", config.get("output") or [], spec.outputs)
    largest = configured or (spec.batch.largest if spec.batch else 0)
    return Completion(
        missing_inputs,
        missing_outputs,
        largest if spec.batch and not configured else None,
        largest > 1 and not any(key in config for key in SCHEDULERS),
        optional,
    )


def max_batch_size(config: Mapping[str, Any], spec: ModelSpec) -> int:
    """The most items a request may have: as configured, else the engine's largest batch; 0 without batching."""
    if spec.batch is None:
        return 0
    return int(config.get("max_batch_size", 0)) or spec.batch.largest


def _check_optional(entries: Sequence[Mapping[str, Any]], optional: frozenset[str]) -> None:
    for entry in entries:
        if entry["name"] in optional and not entry.get("optional"):
            raise ConfigError(
                f"config.pbtxt has input '{entry['name']}' without optional, and it is one of two of which a request "
                "brings one (BY_REFERENCE); add optional: true to it, or leave the input out to have it completed"
            )


def _missing(kind: str, entries: Sequence[Mapping[str, Any]], tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    by_name = {tensor.name: tensor for tensor in tensors}
    for entry in entries:
        _check_entry(kind, entry, by_name)
    named = {entry["name"] for entry in entries}
    return tuple(tensor for tensor in tensors if tensor.name not in named)


def _check_entry(kind: str, entry: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> None:
    name = entry["name"]
    if name not in tensors:
        raise ConfigError(f"config.pbtxt has {kind} '{name}', but the model's {kind}s are {', '.join(tensors)}")
    if entry.get("allow_ragged_batch"):
        raise ConfigError(
            f"input '{name}' has allow_ragged_batch, which pinstream does not do; leave it out: requests of unlike "
            "shapes run in batches of their own"
        )
    reshape = entry.get("reshape")
    if reshape and kind == "output":
        raise ConfigError(f"output '{name}' has reshape, which pinstream does for inputs only; leave it out")
    tensor = tensors[name]
    # What a client sends as `dims`, Triton hands to the model as `reshape` says.
    dims = [int(d) for d in (reshape.get("shape", []) if reshape else entry["dims"])]
    if entry["data_type"] != tensor.config_dtype or not tensor.accepts(dims):
        raise ConfigError(
            f"{kind} '{name}': config.pbtxt has {entry['data_type']} {dims}, the model has "
            f"{tensor.config_dtype} {list(tensor.shape)}; correct config.pbtxt, or leave the {kind} out "
            "to have it completed"
        )


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, tensors))
