"""What Triton asks of a config.pbtxt before it loads a model; written down from what 2.51 refuses.

Each rule gives what it found wrong and what to do about it. That Triton sees it in the same way, and what it takes, is
tested against a real one in tests/server/test_doctor.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.doctor.backends import ENSEMBLE, OURS, backend_of
from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.signature import Signature
from pinstream_cli.triton.model_versions import LARGEST
from pinstream_cli.triton.repository import CONFIG, Model, breaks_shell

Faults = Iterator[tuple[str, str]]
# What Triton 2.51 takes for the name of a metric's label.
LABEL = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9_]*)?")
# Where a control of a sequence may have its values.
FALSE_TRUE = ("int32_false_true", "fp32_false_true", "bool_false_true")
# The only platform that Triton lets have TensorRT's own settings, whatever the backend.
TENSORRT = "tensorrt_plan"
# What that platform alone may have.
ONLY_TENSORRT = ("is_shape_tensor", "is_non_linear_format_io")
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Subject:
    """What the rules look at.

    Attributes:
        model: The model.
        signature: What it takes and gives.
        gpus: GPUs of this machine.
    """

    model: Model
    signature: Signature
    gpus: int

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def is_ensemble(self) -> bool:
        """Whether it is made of other models."""
        return backend_of(self.config) == ENSEMBLE


def check_config(area: str, subject: Subject) -> Iterator[Check]:
    """Hold a configuration against Triton's rules.

    Args:
        area: What the checks belong to.
        subject: The model and its surroundings.
    """
    for name, rule in RULES.items():
        for found, remedy in rule(subject):
            yield Check(area, name, "FIX", found, remedy)


def _name(subject: Subject) -> Faults:
    model = subject.model
    if model.config.name not in ("", model.name):
        remedy = f'remove name: "{model.config.name}" from {CONFIG}, or rename the directory'
        yield f'the directory is {model.name}, {CONFIG} says "{model.config.name}"', remedy


def _text(subject: Subject) -> Faults:
    file = subject.model.path / CONFIG
    if file.exists() and b"\0" in file.read_bytes():
        yield "has a byte 0, with which Triton does not read it", f"write {file} again as text"


def _versions(subject: Subject) -> Faults:
    model = subject.model
    for name, number in model.numbers.items():
        if not -LARGEST <= number <= LARGEST:
            yield f"{name}/: the number is too large, and ends tritonserver", "give it a number below 2^63"
    first = model.path / "1"
    zeros = [path.name for path in model.path.iterdir() if path.is_dir() and path.name[1:] and path.name[0] == "0"]
    if not model.numbers:
        yield (
            "no version directory" + (f"; {zeros[0]}/ begins with 0" if zeros else ""),
            f"mkdir {first} and put the model there",
        )
    elif not model.chosen:
        there = ", ".join(map(str, sorted(model.numbers.values())))
        yield f"version_policy takes none of those that are there ({there})", f"correct version_policy in {CONFIG}"
    for name, number in model.numbers.items():
        if number in model.chosen and (number < 0 or not (model.path / str(number)).is_dir()):
            yield (
                f"Triton takes {name}/ for version {number}, and there is no {number}/",
                f"move {model.path / name} away",
            )


def _batching(subject: Subject) -> Faults:
    config, largest = subject.config, subject.config.max_batch_size
    if largest < 0:
        yield f"max_batch_size is {largest}", "write 0 for no batching, or leave it out"
        return
    for size in (*config.dynamic_batching.preferred_batch_size, *config.sequence_batching.oldest.preferred_batch_size):
        if not 0 < size <= largest:
            yield f"preferred_batch_size {size} is not from 1 to max_batch_size, {largest}", f"correct {CONFIG}"
    if (delay := config.dynamic_batching.max_queue_delay_microseconds) > HOUR_US:
        yield f"max_queue_delay_microseconds is {delay}, for which a lone request waits", "give at most an hour"
    yield from _priorities(config.dynamic_batching)
    yield from _sequences(config.sequence_batching)
    uncached = {
        "decoupled": config.model_transaction_policy.decoupled,
        "sequence_batching": config.HasField("sequence_batching"),
    }
    for name in (name for name, there in uncached.items() if there and config.response_cache.enable):
        yield f"response_cache with {name}", "leave one of them out"


def _sequences(batching: Any) -> Faults:
    if not 0 <= batching.direct.minimum_slot_utilization <= 1:
        yield f"minimum_slot_utilization is {batching.direct.minimum_slot_utilization}", "give it from 0 to 1"
    for state in (state for state in batching.state if len(state.initial_state) > 1):
        yield f"state {state.input_name} has {len(state.initial_state)} of initial_state", "give it one at most"
    for entry in batching.control_input:
        if not entry.name:
            yield "control_input without a name", f"correct {CONFIG}"
        for control in entry.control:
            values = [len(getattr(control, field)) for field in FALSE_TRUE if len(getattr(control, field))]
            if control.kind != control.CONTROL_SEQUENCE_CORRID and values != [2]:
                yield f"{entry.name} has {sum(values)} values in all", f"give it two in one of {', '.join(FALSE_TRUE)}"


def _priorities(batching: Any) -> Faults:
    levels = batching.priority_levels
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    delayed = any(p.timeout_action == p.DELAY and p.default_timeout_microseconds for p in policies)
    if batching.preserve_ordering and delayed:
        yield "preserve_ordering with timeout_action: DELAY", "leave one of them out"
    if not levels:
        return
    for name, level in (
        ("default_priority_level", batching.default_priority_level),
        *(("priority_queue_policy", level) for level in batching.priority_queue_policy),
    ):
        if not 1 <= level <= levels:
            yield f"{name} is {level}, priority_levels is {levels}", f"give a level from 1 to {levels}"
    if batching.preserve_ordering and levels > 1:
        yield f"preserve_ordering with {levels} priority_levels", "leave one of them out"


def _tensors(subject: Subject) -> Faults:
    config = subject.config
    # Our backend fills in what is missing; others may by code of their own.
    whole = subject.signature.complete and backend_of(config) != OURS
    for tensor in (*config.input, *config.output):
        name = tensor.name or "a tensor"
        if whole and (missing := [field for field in ("name", "data_type", "dims") if not getattr(tensor, field)]):
            yield f"{name} has no {', '.join(missing)}", f"correct {CONFIG}"
        if wrong := [size for size in tensor.dims if size < 1 and size != -1]:
            yield f"{name} has sizes of {wrong} in dims", "give sizes from 1 on, or -1 for any"
        yield from _reshape(tensor, batches=backend_of(config) == OURS or config.max_batch_size > 0)
    sources = {name for entry in (*config.batch_input, *config.batch_output) for name in entry.source_input}
    if whole and (missing := sorted(sources - set(subject.signature.inputs))):
        yield f"batch_input or batch_output names {', '.join(missing)}, which is no input", f"correct {CONFIG}"
    for tensor in config.input:
        if tensor.format and len(tensor.dims) != 3:
            yield f"{tensor.name} has a format of three dimensions, and dims {list(tensor.dims)}", "leave format out"
    for name, times in Counter(tensor.name for tensor in config.input).items():
        if times > 1:
            yield f"input {name} stands there {times} times, and every request lacks one", "leave one of them out"
    for tensor in (*config.input, *config.output):
        for field in (field for field in ONLY_TENSORRT if getattr(tensor, field, False)):
            if config.platform != TENSORRT:
                yield f'{tensor.name} has {field}, for which Triton wants platform "{TENSORRT}"', "leave it out"


def _reshape(tensor: Any, *, batches: bool) -> Faults:
    if not tensor.HasField("reshape"):
        return
    if _sizes(tensor.dims) != _sizes(tensor.reshape.shape):
        shapes = f"dims {list(tensor.dims)} and reshape {list(tensor.reshape.shape)}"
        yield f"{tensor.name} has {shapes}, which are not of the same size", f"correct {CONFIG}"
    elif not tensor.reshape.shape and not batches:
        yield f"{tensor.name} has an empty reshape without a batch dimension", "leave it out"


def _sizes(dims: Sequence[int]) -> list[int]:
    """Elements before, between and behind the dimensions of any size: what a reshape has to keep."""
    sizes = [1]
    for size in dims:
        if size == -1:
            sizes.append(1)
        else:
            sizes[-1] *= size
    return sizes


def _instance_groups(subject: Subject) -> Faults:
    # Those of ensembles are refused as a whole.
    for group in () if subject.is_ensemble else subject.config.instance_group:
        kind, ids, gpus = _kind(group, subject.gpus), list(group.gpus), subject.gpus
        if not kind.startswith("KIND_"):
            yield f"there is no {kind}", "write KIND_AUTO, KIND_GPU, KIND_CPU or KIND_MODEL"
        elif kind != "KIND_GPU" and ids:
            yield f"{kind} with gpus {ids}", "leave gpus out" + ("" if gpus else "; this machine has no GPU")
        elif kind == "KIND_GPU" and not gpus:
            yield "KIND_GPU, and this machine has no GPU", "write KIND_AUTO or KIND_CPU"
        elif wrong := [number for number in ids if not 0 <= number < gpus]:
            yield f"gpus {wrong}, and this machine has {gpus}, counted from 0", f"correct {CONFIG}"
        if group.profile and subject.config.platform != TENSORRT:
            yield (
                f'profile, for which Triton wants platform "{TENSORRT}"',
                f'leave it out, or write platform: "{TENSORRT}" too',
            )


def _passive(subject: Subject) -> Faults:
    groups = subject.config.instance_group
    if groups and all(group.passive for group in groups):
        yield "all instances are passive, and the first request ends tritonserver", "leave passive out"


def _scheduling(subject: Subject) -> Faults:
    if subject.config.HasField("ensemble_scheduling") and not subject.is_ensemble:
        yield f'without platform: "{ENSEMBLE}"', "write that, and no backend, or leave ensemble_scheduling out"


def _kind(group: Any, gpus: int) -> str:
    """The kind of a group; Triton takes KIND_AUTO for the GPUs where there are any."""
    names = {group.KIND_GPU: "KIND_GPU", group.KIND_CPU: "KIND_CPU", group.KIND_MODEL: "KIND_MODEL"}
    if group.kind == group.KIND_AUTO:
        return "KIND_GPU" if gpus else "KIND_CPU"
    return names.get(group.kind, f"kind {group.kind}")


def _path(subject: Subject) -> Faults:
    if breaks_shell(subject.model):
        found = f"{subject.model.path}: Triton's Python backend gives that to a shell as it is"
        yield found, "use letters, digits, and . _ - only"


def _metric_tags(subject: Subject) -> Faults:
    for name in subject.config.metric_tags:
        if not LABEL.fullmatch(name):
            yield (
                f"{name!r} is no label of a metric, and ends tritonserver",
                "use letters, digits and _, and no _ first",
            )


def _links(subject: Subject) -> Faults:
    for path in leading_nowhere(subject.model.path):
        yield (
            f"{path} leads nowhere, and Triton passes over a model with such a link",
            "remove it, or put there what it names",
        )


def leading_nowhere(directory: Path) -> list[Path]:
    """Links in a directory that lead nowhere, or in circles."""
    return sorted(path for path in directory.iterdir() if path.is_symlink() and not path.exists())


RULES: dict[str, Callable[[Subject], Faults]] = {
    CONFIG: _text,
    "name": _name,
    "path": _path,
    "links": _links,
    "versions": _versions,
    "batching": _batching,
    "metric_tags": _metric_tags,
    "tensors": _tensors,
    "instance_group": _instance_groups,
    "passive": _passive,
    "ensemble_scheduling": _scheduling,
}
