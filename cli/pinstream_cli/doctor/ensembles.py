"""Ensembles: do their steps name models, versions and tensors that there are, and do these go together?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pinstream.errors import ConfigError
from pinstream.references import SUFFIX
from pinstream_cli.doctor.backends import OURS, backend_of
from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.signature import Signature, Tensor, agree
from pinstream_cli.triton.repository import CONFIG, Model

NEWEST = -1
Faults = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Known:
    """A model of the repository.

    Attributes:
        model: The model.
        signature: What it takes and gives.
    """

    model: Model
    signature: Signature

    @property
    def steps(self) -> set[str]:
        """The models that it is made of, where it is an ensemble."""
        return {step.model_name for step in self.model.config.ensemble_scheduling.step}


@dataclass(frozen=True)
class _Use:
    """Where a tensor of an ensemble comes from or goes to: whose it is, what it is there, and how that batches."""

    whose: str
    tensor: Tensor
    batches: bool

    def agrees(self, other: _Use) -> bool:
        """As Triton compares them: as they are, or with their batch dimensions."""
        if self.tensor.dtype != other.tensor.dtype:
            return False
        return agree(self.tensor.dims, other.tensor.dims) or agree(self._full(), other._full())

    def _full(self) -> tuple[int, ...]:
        return (-1, *self.tensor.dims) if self.batches else self.tensor.dims

    def __str__(self) -> str:
        return f"{self.tensor} in {self.whose}"


def check_ensemble(area: str, model: Model, models: Mapping[str, Known]) -> Iterator[Check]:
    """Every step of an ensemble.

    Args:
        area: What the checks belong to.
        model: The ensemble.
        models: All models of the repository, by name.
    """
    steps = model.config.ensemble_scheduling.step
    faults = [*_wiring(model), *(fault for step in steps for fault in _step(step, model, models))]
    if not faults:
        faults += [*_tensors(model, models), *_circle(model, models), *_references(model, models)]
    for found, remedy in faults:
        yield Check(area, "steps", "FIX", found, remedy or f"correct ensemble_scheduling in {CONFIG}")
    if not faults:
        yield Check(area, "steps", "OK", " -> ".join(dict.fromkeys(step.model_name for step in steps)))


def check_decoupled(area: str, model: Model, models: Mapping[str, Known]) -> Iterator[Check]:
    """Whether a model, or one that it leads to, answers over streams alone.

    Args:
        area: What the check belongs to.
        model: The model.
        models: All models of the repository, by name.
    """
    # An ensemble goes by its steps.
    for name in sorted(_reached(model, models) & set(models)) or [model.name]:
        config = models[name].model.config
        # Ours refuses it.
        if not config.model_transaction_policy.decoupled or backend_of(config) == OURS:
            continue
        found = f"{name} is decoupled: only gRPC's ModelStreamInfer gets answers, every other request an error"
        yield Check(area, "decoupled", "WARN", found, f"leave decoupled out of its {CONFIG} unless clients stream")


def _wiring(model: Model) -> Faults:
    """Whether every tensor is given by one and taken by another, and every step can run."""
    config, steps = model.config, model.config.ensemble_scheduling.step
    for field in ("instance_group", "optimization", "model_warmup", "backend"):
        if _is_set(config, field):
            yield f"an ensemble has no {field}", f"leave {field} out of {CONFIG}"
    if not steps:
        yield "no step", f"write ensemble_scheduling {{ step {{ ... }} }} into {CONFIG}"
    for number, step in enumerate(steps):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield f"step {number} has no {field}", ""
    written = Counter(name for step in steps for name in step.output_map.values())
    given = {tensor.name for tensor in config.input} | set(written)
    taken = {name for step in steps for name in step.input_map.values()} | {tensor.name for tensor in config.output}
    for fault, names in (
        ("is given twice", {name for name, times in written.items() if times > 1}),
        ("is taken by a step or for an output, and given by none", taken - given),
        ("is given, and taken neither by a step nor for an output", given - taken),
    ):
        yield from ((f"{name} {fault}", "") for name in sorted(names))
    if given >= taken and (waiting := _never_run(model)):
        yield f"{', '.join(waiting)} wait for each other", ""


def _is_set(message: Any, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in message.ListFields())


def _never_run(model: Model) -> list[str]:
    there = {tensor.name for tensor in model.config.input}
    waiting = list(model.config.ensemble_scheduling.step)
    while runs := [step for step in waiting if set(step.input_map.values()) <= there]:
        there |= {name for step in runs for name in step.output_map.values()}
        waiting = [step for step in waiting if step not in runs]
    return [step.model_name for step in waiting]


def _step(step: Any, model: Model, models: Mapping[str, Known]) -> Faults:
    name, known = step.model_name, models.get(step.model_name)
    if not name:
        return
    if known is None:
        yield f"no model {name} in the repository", "add it"
        return
    if step.model_version not in (NEWEST, *known.model.chosen):
        there = ", ".join(map(str, known.model.chosen)) or "none"
        yield f"version {step.model_version} of {name}, of which Triton loads {there}", "write model_version: -1"
    signature = known.signature
    if not signature.complete:
        return
    for kind, mapped, tensors in (
        ("input", step.input_map, signature.inputs),
        ("output", step.output_map, signature.outputs),
    ):
        if wrong := sorted(set(mapped) - set(tensors)):
            yield f"{name} has no {kind} {', '.join(wrong)}; it has {', '.join(tensors) or 'none'}", ""
    lacking = sorted(n for n, t in signature.inputs.items() if not t.optional and n not in step.input_map)
    if lacking:
        yield f"{name} takes {', '.join(lacking)} too, which no input_map gives", ""
    if model.config.max_batch_size > signature.max_batch_size > 0:
        yield (
            f"max_batch_size is {model.config.max_batch_size}, that of {name} {signature.max_batch_size}",
            f"write max_batch_size: {signature.max_batch_size}",
        )


def _tensors(model: Model, models: Mapping[str, Known]) -> Faults:
    first: dict[str, _Use] = {}
    for name, use in _uses(model, models):
        before = first.setdefault(name, use)
        if not use.agrees(before):
            yield f"{name} is {before} and {use}", ""


def _uses(model: Model, models: Mapping[str, Known]) -> Iterator[tuple[str, _Use]]:
    own = models[model.name].signature
    for name, tensor in (*own.inputs.items(), *own.outputs.items()):
        yield name, _Use(model.name, tensor, own.max_batch_size > 0)
    for step in model.config.ensemble_scheduling.step:
        signature = models[step.model_name].signature
        for mapped, tensors in ((step.input_map, signature.inputs), (step.output_map, signature.outputs)):
            for theirs, name in mapped.items():
                if theirs in tensors:
                    yield name, _Use(step.model_name, tensors[theirs], signature.max_batch_size > 0)


def _reached(model: Model, models: Mapping[str, Known]) -> set[str]:
    """The models that an ensemble leads to, over any number of steps."""
    reached, new = set[str](), models[model.name].steps
    while new:
        reached |= new
        new = {name for step in new if step in models for name in models[step].steps} - reached
    return reached


def _circle(model: Model, models: Mapping[str, Known]) -> Faults:
    if model.name in _reached(model, models):
        yield f"it leads back to {model.name} itself", "take that step out"


def _references(model: Model, models: Mapping[str, Known]) -> Faults:
    """Whether what is referred to, which can be read once, is read by one."""
    taken = [
        (step, theirs, name)
        for step in model.config.ensemble_scheduling.step
        for theirs, name in step.input_map.items()
    ]
    times = Counter([name for _, _, name in taken] + [tensor.name for tensor in model.config.output])
    for step, theirs, name in taken:
        if times[name] > 1 and theirs in _referring(models[step.model_name].model):
            yield (
                f"{name} refers to what {step.model_name} reads once, and goes to another step or an output, too",
                f"give {theirs.removesuffix(SUFFIX)} instead of {theirs} to {step.model_name}, or {name} to it alone",
            )


def _referring(model: Model) -> set[str]:
    """The inputs of a model of ours that refer to others."""
    try:
        return {name + SUFFIX for name in model.options.by_reference} if backend_of(model.config) == OURS else set()
    except ConfigError:  # told where its configuration is looked at
        return set()
