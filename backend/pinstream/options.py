"""config.pbtxt, as Triton hands it over (JSON), -> one frozen Options. Every parameter is documented here.

| parameter | values | default | meaning |
|---|---|---|---|
| ENGINE | auto, onnxruntime, tensorrt, tensorrt_rtx | auto | What runs it; auto goes by the file: .onnx or .plan |
| BUCKETS | "1,4,8,16" | the engine's | Batch sizes that run; others are padded to the next or split |
| SLOTS | 1 to 64 | lanes + 1, GPU: 3 | Batches in flight in one instance; each owns its buffers |
| LANES | 1 to 256 | CPU cores, at most 4, / instances | ONNX Runtime: batches computed at the same time |
| THREADS | 1 to 1024 | CPU cores / LANES / instances | ONNX Runtime: threads of one batch (intra-op) |
| SHARE_ENGINE | auto, on, off | auto | One process runs the engine for all instances; auto: several on one GPU |
| EXECUTIONS | 1 to 64 | 1 | Batches of requests that one instance works on at once, with a shared engine |
| BY_REFERENCE | "x;y" | none | Inputs that the step before may leave in shared memory, and send where they lie |
| CUDA_GRAPHS | auto, on, off | auto | TensorRT: launch a batch as one graph; auto: plans of a fixed batch size |
| OUTPUT_MEMORY | cpu, gpu | cpu | TensorRT: gpu leaves outputs there for the next model of an ensemble |
| PLUGINS | "a.so;b.so" | none | TensorRT: plugin libraries to load first; from the version directory, or absolute |
| VERSION_COMPATIBLE | true, false | false | TensorRT: allow plans that bring host code along |
| AUTO_BUILD | true, false | false | TensorRT: build a missing or unfit plan from the model.onnx beside it |
| CACHE_DIR | a path | ~/.cache/pinstream | TensorRT: where built plans and JIT caches are kept |
| VERIFY | true, false | false | Load only files whose SHA-256 the sidecar has, and that nobody else can write |

Triton's own fields keep Triton's meaning: max_batch_size, input, output, dynamic_batching, instance_group (its
`profile` too), default_model_filename, cc_model_filenames, model_warmup, version_policy, and of `optimization`:
`priority`, `cuda.graphs`, `cuda.graph_spec` (its batch sizes), `cuda.busy_wait_events`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pinstream.errors import ConfigError

T = TypeVar("T")

# Parameters of Triton's Python backend itself, read there and not by us.
PYTHON_BACKEND_PARAMETERS = frozenset({"FORCE_CPU_ONLY_INPUT_TENSORS", "EXECUTION_ENV_PATH"})
ENGINES = ("auto", "onnxruntime", "tensorrt", "tensorrt_rtx")
# In the environment of a server: VERIFY for all of its models.
VERIFY_ALL = "PINSTREAM_VERIFY"
# Batch sizes for a model whose batch dimension is dynamic and without a limit of its own.
DEFAULT_MAX_BATCH_SIZE = 8
# Where SLOTS is not set; of ONNX Runtime it goes by the lanes.
DEFAULT_GPU_SLOTS = 3


@dataclass(frozen=True)
class Options:
    """A model's settings.

    Attributes:
        engine: What runs the model.
        max_batch_size: As configured; 0 where the configuration leaves it to the engine.
        buckets: Batch sizes that run, ascending; empty for the engine's own.
        slots: Batches in flight; 0 for the engine's default.
        lanes: ONNX Runtime batches computed at the same time.
        threads: ONNX Runtime threads of one batch.
        share_engine: Whether a process of its own runs the engine for all instances: auto, on or off.
        instances: Model instances of one device.
        by_reference: Names of inputs of which a request may bring references instead.
        executions: Batches of requests that an instance works on at once, where a process of its own runs the engine.
        gpu_inputs: Whether inputs may be on the GPU (FORCE_CPU_ONLY_INPUT_TENSORS is "no").
        model_filename: The file to load; empty for model.plan, else model.onnx.
        cc_model_filenames: Compute capability ("9.0") to file name.
        cuda_graphs: auto, on or off.
        output_memory: cpu or gpu.
        plugins: Plugin libraries.
        version_compatible: Whether a plan may bring host code along.
        auto_build: Whether to build a plan that is missing or does not fit.
        cache_dir: Where built plans and JIT caches are kept; empty for the user's cache directory.
        priority: Of the streams: high, normal or low.
        graph_batch_sizes: Batch sizes of `graph_spec`, ascending.
        busy_wait: Poll for the GPU instead of sleeping.
        profiles: Optimisation profiles to be used; empty for all.
        verify: Whether only files are loaded that the sidecar vouches for.
        device: GPU of the instance.
        kind: Of the instance, as Triton says it: GPU, CPU or MODEL; empty where there is none yet.
        unbatched_inputs: Inputs configured with their ranks under max_batch_size 0. Where such a rank is the engine's
            own, batch dimension and all, the operator has decided against batching.
    """

    engine: str = "auto"
    max_batch_size: int = 0
    buckets: tuple[int, ...] = ()
    slots: int = 0
    lanes: int = 1
    threads: int = 1
    share_engine: str = "auto"
    instances: int = 1
    executions: int = 1
    by_reference: tuple[str, ...] = ()
    gpu_inputs: bool = False
    model_filename: str = ""
    cc_model_filenames: tuple[tuple[str, str], ...] = ()
    unbatched_inputs: tuple[tuple[str, int], ...] = ()
    cuda_graphs: str = "auto"
    output_memory: str = "cpu"
    plugins: tuple[str, ...] = ()
    version_compatible: bool = False
    auto_build: bool = False
    cache_dir: str = ""
    priority: str = "normal"
    graph_batch_sizes: tuple[int, ...] = ()
    busy_wait: bool = False
    profiles: tuple[int, ...] = ()
    verify: bool = False
    device: int = 0
    kind: str = ""

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any], device: int | None = None, kind: str = "") -> Options:
        """Read the settings of one model.

        Args:
            config: The model configuration as Triton's JSON.
            device: GPU of the instance; where there is no instance yet, the first that the configuration names.
            kind: Of the instance.

        Raises:
            ConfigError: A parameter is unknown or out of range; the text names it, its value and what it may be.
        """
        parameters = _string_parameters(config)
        _refuse_unknown(parameters)
        cores = len(os.sched_getaffinity(0))
        device = _first_gpu(config) if device is None else device
        verify = verifies(config)
        groups = _groups_on(config, device)
        instances = max(1, sum(int(group.get("count", 1)) for group in groups))
        share = _read(parameters, "SHARE_ENGINE", _choice(("auto", "on", "off")), "auto")
        sessions = 1 if share == "on" else instances
        lanes = _read(parameters, "LANES", _integer(1, 256), max(1, min(cores, 4) // sessions))
        return cls(
            engine=_read(parameters, "ENGINE", _choice(ENGINES), "auto"),
            max_batch_size=int(config.get("max_batch_size", 0)),
            buckets=_read(parameters, "BUCKETS", _buckets, ()),
            slots=_read(parameters, "SLOTS", _integer(1, 64), 0),
            lanes=lanes,
            threads=_read(parameters, "THREADS", _integer(1, 1024), max(1, cores // (lanes * sessions))),
            share_engine=share,
            instances=instances,
            by_reference=_read(parameters, "BY_REFERENCE", _list, ()),
            executions=_read(parameters, "EXECUTIONS", _integer(1, 64), 1),
            gpu_inputs=parameters.get("FORCE_CPU_ONLY_INPUT_TENSORS", "yes").lower() == "no",
            model_filename=_file_name(config.get("default_model_filename", ""), verify=verify),
            cc_model_filenames=tuple(
                sorted(
                    (gpu, _file_name(name, verify=verify))
                    for gpu, name in dict(config.get("cc_model_filenames") or {}).items()
                )
            ),
            unbatched_inputs=_unbatched_inputs(config),
            cuda_graphs=_read(parameters, "CUDA_GRAPHS", _choice(("auto", "on", "off")), _configured_graphs(config)),
            output_memory=_read(parameters, "OUTPUT_MEMORY", _choice(("cpu", "gpu")), "cpu"),
            plugins=_read(parameters, "PLUGINS", _list, ()),
            version_compatible=_read(parameters, "VERSION_COMPATIBLE", _boolean, False),
            auto_build=_read(parameters, "AUTO_BUILD", _boolean, False),
            cache_dir=_read(parameters, "CACHE_DIR", str, ""),
            verify=verify,
            priority=PRIORITIES.get(str(_optimization(config).get("priority", "")), "normal"),
            graph_batch_sizes=_graph_batch_sizes(config),
            busy_wait=bool(_cuda(config).get("busy_wait_events", False)),
            profiles=_profiles(groups),
            device=device,
            kind=kind,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Options:
        """Read what dataclasses.asdict and JSON made of one."""
        return cls(**{key: _tuples(value) for key, value in content.items()})


def verifies(config: Mapping[str, Any]) -> bool:
    """Whether VERIFY is set by a model's configuration, as Triton's JSON, or for all models in the environment.

    Raises:
        ConfigError: It is neither true nor false there.
    """
    return _read(_string_parameters(config), "VERIFY", _boolean, False) or _verifies_all()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# Fields that come from Triton's own configuration, not from a parameter.
_TRITONS_FIELDS = {
    "max_batch_size",
    "instances",
    "gpu_inputs",
    "model_filename",
    "cc_model_filenames",
    "unbatched_inputs",
    "priority",
    "graph_batch_sizes",
    "busy_wait",
    "profiles",
    "device",
    "kind",
}
PRIORITIES = {"PRIORITY_MAX": "high", "PRIORITY_MIN": "low"}
PARAMETERS = frozenset(f.name.upper() for f in fields(Options) if f.name not in _TRITONS_FIELDS)


def _unbatched_inputs(config: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    if int(config.get("max_batch_size", 0)):
        return ()
    return tuple((entry["name"], len(entry["dims"])) for entry in config.get("input") or [])


def _optimization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(config.get("optimization") or {})


def _cuda(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(_optimization(config).get("cuda") or {})


def _configured_graphs(config: Mapping[str, Any]) -> str:
    return "on" if _cuda(config).get("graphs") else "auto"


def _graph_batch_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(sorted({int(spec.get("batch_size", 0)) or 1 for spec in _cuda(config).get("graph_spec") or []}))


def _first_gpu(config: Mapping[str, Any]) -> int:
    return next((int(gpu) for group in config.get("instance_group") or [] for gpu in group.get("gpus") or []), 0)


def _groups_on(config: Mapping[str, Any], device: int) -> list[Mapping[str, Any]]:
    """The instance groups that have instances on this GPU; one that names none has them on every GPU."""
    groups = list(config.get("instance_group") or [])
    return [group for group in groups if device in [int(gpu) for gpu in group.get("gpus") or [device]]]


def _profiles(groups: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    chosen = {str(p) for group in groups for p in group.get("profile") or []}
    wrong = sorted(p for p in chosen if not p.isdecimal())
    if wrong:
        raise ConfigError(f'instance_group.profile is "{wrong[0]}"; profiles are numbered from 0')
    return tuple(sorted(map(int, chosen)))


def _string_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value.get("string_value", "")) for key, value in (config.get("parameters") or {}).items()}


def _refuse_unknown(parameters: Mapping[str, str]) -> None:
    # Lower-case keys belong to the native backend's vocabulary or to the user; only our own kind of name is checked.
    unknown = [k for k in parameters if k.isupper() and k not in PARAMETERS | PYTHON_BACKEND_PARAMETERS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], PARAMETERS, n=1)
        raise ConfigError(
            f"unknown parameter {unknown[0]} in config.pbtxt; known are {', '.join(sorted(PARAMETERS))}"
            + (f"; did you mean {close[0]}?" if close else "")
        )


def _read(parameters: Mapping[str, str], key: str, parse: Callable[[str], T], default: T) -> T:
    text = parameters.get(key)
    if text is None:
        return default
    try:
        return parse(text.strip())
    except ValueError as error:
        raise ConfigError(f'parameter {key} is "{text}" in config.pbtxt; it must be {error}') from None


def _file_name(name: object, *, verify: bool) -> str:
    """The name of a model file. A plan is code: only what lies in the repository is run."""
    text = str(name)
    if os.path.isabs(text) or ".." in text.split("/"):
        raise ConfigError(
            f'config.pbtxt names the file "{text}", which leads out of the version\'s directory; put the file into it, '
            "and name it without the way there"
        )
    if verify and "/" in text:
        # The directories above the file's are what is looked at as the version's, the model's and the repository's.
        raise ConfigError(
            f'VERIFY is set, and config.pbtxt names the file "{text}", deeper than the version\'s directory; '
            "put the file into it, and name it without the way there"
        )
    return text


def _verifies_all() -> bool:
    """Whether `pinstream serve --verify` asks for it, whatever a configuration says that others may have written."""
    text = os.environ.get(VERIFY_ALL, "false")
    try:
        return _boolean(text)
    except ValueError as error:
        raise ConfigError(f'{VERIFY_ALL} is "{text}" in the environment; it must be {error}') from None


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("true or false")
    return text.lower() == "true"


def _buckets(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError('batch sizes separated by commas, as in "1,4,8"')
    return tuple(sorted({int(part) for part in parts}))
