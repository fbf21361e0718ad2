"""Models that are odd in one way each, with what becomes of them: pinstream doctor and Triton have to say the same.

All are models in Python, which load in no time, and differ by their configuration and by files around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CODE = b"""import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            utils.InferenceResponse([utils.Tensor("b", utils.get_input_tensor_by_name(request, "a").as_numpy())])
            for request in requests
        ]
"""
IMPORTS = b"""import os.path
import beside
from numpy import array

try:
    import nonesuch
except ImportError:
    pass
"""
PYTHON = 'backend: "python"\n'
OUTPUT = 'output { name: "b" data_type: TYPE_FP32 dims: [ 4 ] }\n'
TENSORS = 'input { name: "a" data_type: TYPE_FP32 dims: [ 4 ] }\n' + OUTPUT
BATCHED = PYTHON + TENSORS + "max_batch_size: 4\n"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
LABELS = PYTHON + TENSORS.replace('name: "b"', 'name: "b" label_filename: "labels.txt"')


@dataclass(frozen=True)
class Odd:
    """One model.

    Attributes:
        name: Its name.
        config: Its config.pbtxt; None for none.
        words: What doctor says about it; empty where Triton serves it.
        files: More files, by their place in its directory.
        links: Links, by their place in its directory, and what each leads to.
        versions: Its version directories.
        stops: Whether Triton 2.51 hangs or crashes, now and then at least, where it should refuse it.
        answers: Whether it answers plain requests, where Triton loads it.
        warns: What doctor says of streams; empty for nothing.
    """

    name: str
    config: str | None
    words: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    versions: Sequence[str] = ("1",)
    stops: bool = False
    answers: bool = True
    warns: str = ""

    def write(self, repository: Path) -> None:
        """Put it into a repository."""
        (repository / self.name).mkdir()
        code = {f"{version}/model.py": CODE for version in self.versions}
        for name, content in {**code, **self.files}.items():
            path = repository / self.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, target in self.links.items():
            (repository / self.name / name).symlink_to(target)
        if self.config is not None:
            (repository / self.name / "config.pbtxt").write_bytes(self.config.encode(errors="surrogateescape"))


def _input(more: str = "", dims: str = "4", batch: int = 4) -> str:
    entry = f'input {{ name: "a" data_type: TYPE_FP32 dims: [ {dims} ] {more} }}\n'
    return f"{PYTHON}max_batch_size: {batch}\n{entry}{OUTPUT}"


def _parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


def _warmup(dims: str = "4", source: str = "zero_data: true", batch: int = 1, name: str = "a") -> str:
    entry = f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: [ {dims} ] {source} }} }}'
    return f'{BATCHED}model_warmup {{ name: "w" batch_size: {batch} {entry} }}\n'


def _ensemble(model: str = "plain", taken: str = "a", given: str = "b", version: int = -1, more: str = "") -> str:
    maps = f'input_map {{ key: "{taken}" value: "a" }} output_map {{ key: "{given}" value: "b" }}'
    step = f'step {{ model_name: "{model}" model_version: {version} {maps} }}'
    return f'platform: "ensemble"\nmax_batch_size: 4\n{TENSORS}ensemble_scheduling {{ {step} }}\n{more}'


BROKEN = {"1/model.py": b"raise ValueError\n"}
# None of it keeps Triton from serving the model.
MUCH = (
    _warmup(source='input_data_file: "x"').replace(
        "dims: [ 4 ] }\noutput", "dims: [ 4 ] reshape { shape: [ 2, 2 ] } }\noutput"
    )
    + "dynamic_batching { preferred_batch_size: 4 }\n# \udce4\n"
).replace('name: "b"', 'name: "b" label_filename: "labels.txt"')
ODD_MODELS = (
    Odd("plain", BATCHED, files={"1/model.py": IMPORTS + CODE, "1/beside.py": b""}),
    Odd(
        "much.and%",
        MUCH,
        files={"labels.txt": b"", "warmup/x": bytes(16)},
        links={"0/notes.txt": "nonesuch"},
        versions=("0",),
    ),
    # Versions.
    Odd("old_is_broken", BATCHED, files=BROKEN, versions=("1", "2")),
    Odd("leading_zero", BATCHED, "01/ begins with 0", versions=("01",)),
    Odd("kept_beside", BATCHED, "Triton takes 2_old/ for version 2", versions=("1", "2_old"), stops=True),
    Odd("too_large", BATCHED, "the number is too large", versions=("1", "9" * 19), stops=True),
    Odd(
        "specific",
        BATCHED.replace("TYPE_FP32", "99") + "version_policy { specific { versions: [ 2, 9 ] } }\n",
        versions=("1_old", "2"),
    ),
    Odd("specific_gone", BATCHED + "version_policy { specific { versions: 9 } }\n", "takes none of those"),
    Odd("latest_0", BATCHED + "version_policy { latest { } }\n", "takes none of those"),
    Odd("link", BATCHED, "leads nowhere", links={"notes.txt": "nonesuch"}),
    Odd("of two words", BATCHED, "to a shell as it is", stops=True),
    # Instances, on a machine without a GPU; where there are some, each of these is refused as well.
    Odd("gpu_99", BATCHED + "instance_group { kind: KIND_GPU gpus: [ 99 ] }\n", "this machine has"),
    Odd("cpu_with_gpus", BATCHED + "instance_group { kind: KIND_CPU gpus: [ 0 ] }\n", "KIND_CPU with gpus"),
    Odd("kind_9", BATCHED + "instance_group { kind: 9 }\n", "there is no kind 9"),
    Odd("profile", BATCHED + 'instance_group { profile: "0" }\n', "tensorrt_plan"),
    Odd("passive", BATCHED + "instance_group { passive: true }\n", "instances are passive", stops=True),
    Odd("half_passive", BATCHED + "instance_group { passive: true }\ninstance_group { count: 1 }\n"),
    # Batching.
    Odd(
        "delay",
        f"{BATCHED}dynamic_batching {{ max_queue_delay_microseconds: {2**64 - 1} }}\n",
        "a lone request waits",
        answers=False,
    ),
    Odd("streams", BATCHED + DECOUPLED, warns="streams is decoupled", answers=False),
    Odd("negative_batch", PYTHON + TENSORS + "max_batch_size: -1\n", "max_batch_size is -1"),
    Odd("preferred_9", BATCHED + "dynamic_batching { preferred_batch_size: 9 }\n", "preferred_batch_size 9"),
    Odd("no_priority", BATCHED + "dynamic_batching { priority_levels: 2 }\n", "default_priority_level is 0"),
    Odd(
        "order_delay",
        BATCHED + "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY "
        "default_timeout_microseconds: 1 } }\n",
        "preserve_ordering with",
    ),
    Odd("cached_sequence", BATCHED + "response_cache { enable: true } sequence_batching { }\n", "response_cache with"),
    Odd("tags", BATCHED + 'metric_tags { key: "a-b" value: "v" }\n', "'a-b' is no label", stops=True),
    Odd(
        "nameless_control",
        BATCHED + "sequence_batching { control_input { } }\n",
        "control_input without a name",
    ),
    Odd(
        "one_value",
        BATCHED + 'sequence_batching { control_input { name: "s" control { fp32_false_true: 0 } } }\n',
        "s has 1 values in all",
    ),
    Odd(
        "two_states",
        BATCHED + 'sequence_batching { state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 '
        "initial_state { } initial_state { } } }\n",
        "2 of initial_state",
        stops=True,
    ),
    # Tensors.
    Odd("no_dims", _input(dims=""), "a has no dims"),
    Odd("size_0", _input(dims="0"), "sizes of [0]"),
    Odd("reshaped_wrong", _input("reshape { shape: [ 3 ] }"), "not of the same size"),
    Odd("reshaped_any", _input("reshape { shape: [ 4, -1 ] }", dims="2, -1, 2"), "not of the same size"),
    Odd("shape_tensor", _input("is_shape_tensor: true"), "is_shape_tensor"),
    Odd("non_linear", _input("is_non_linear_format_io: true"), "is_non_linear_format_io"),
    Odd("input_twice", BATCHED + TENSORS.replace(OUTPUT, ""), "a stands there 2 times", answers=False),
    Odd("pictures", _input("format: FORMAT_NCHW"), "format of three dimensions"),
    Odd("labels", LABELS, "is not there"),
    Odd("labels_elsewhere", LABELS.replace("labels.txt", "/etc/passwd"), "is not there"),
    Odd("labels_long", LABELS.replace("labels.txt", "x" * 300), "cannot be looked at: File name too long"),
    # What this Triton has.
    Odd(
        "agent", BATCHED + 'model_repository_agents { agents { name: "nonesuch" } }\n', "libtritonrepoagent_nonesuch.so"
    ),
    Odd("runtime", BATCHED + 'runtime: "libtriton_python.so"\n'),
    Odd("runtime_gone", BATCHED + 'runtime: "nonesuch.so"\n', "there is no nonesuch.so"),
    Odd("runtime_other", BATCHED + 'runtime: "model.py"\n', "there is no model.py"),
    Odd("byte_0", BATCHED + "# \0\n", "byte 0"),
    Odd("newer", BATCHED + 'model_metrics { metric_control { metric_identifier { family: "f" } } }\n', "model_metrics"),
    Odd("no_field", BATCHED + "nonesuch: 1\n", "nonesuch"),
    Odd("platform", TENSORS + 'platform: "pinstream"\n', 'platform "pinstream"'),
    Odd("no_config", None),
    Odd("guessed_wrong", "", "onnxruntime, which this Triton has not", files={"1/model.onnx": b"x"}),
    Odd("nothing", "", "nothing in the version directory", files={"1/x": b"x"}, versions=(), stops=True),
    Odd(".hidden", None, "takes every directory for a model", versions=()),
    Odd("forced", BATCHED + _parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "YES"), "is 'YES'"),
    Odd("environment", BATCHED + _parameter("EXECUTION_ENV_PATH", "/"), "/bin/activate is not there"),
    Odd("no_archive", BATCHED + _parameter("EXECUTION_ENV_PATH", "/etc/passwd"), "is no archive of tar"),
    Odd("no_class", BATCHED, "has no class TritonPythonModel", files={"1/model.py": b"x = 1\n"}),
    Odd("long_name", f'{BATCHED}default_model_filename: "{"x" * 300}"\n', "cannot be looked at", stops=True),
    Odd("no_module", BATCHED, "there is no module nonesuch", files={"1/model.py": b"import os, nonesuch.x\n" + CODE}),
    # Warm-up.
    Odd("warm_name", _warmup(name="z"), "it lacks a"),
    Odd("warm_shape", _warmup(dims="5"), "the model takes TYPE_FP32 [4]"),
    Odd("warm_any", _warmup(dims="-1"), "every size has to be given"),
    Odd("warm_nothing", _warmup(source=""), "has neither zero_data"),
    Odd("warm_batch", _warmup(batch=5), "batch_size 5 is above", stops=True),
    Odd("warm_short", _warmup(source='input_data_file: "x"'), "15 bytes", files={"warmup/x": bytes(15)}),
    # Ensembles.
    Odd("steps", _ensemble()),
    Odd("steps_decoupled", _ensemble(more=DECOUPLED)),
    Odd("steps_stream", _ensemble("steps_of_stream"), warns="streams is decoupled", answers=False),
    Odd("steps_of_stream", _ensemble("streams"), warns="streams is decoupled", answers=False),
    Odd("steps_of_9", _ensemble(version=9), "version 9 of plain"),
    Odd("steps_old", _ensemble("old_is_broken", version=1), "version 1 of old_is_broken"),
    Odd("steps_input", _ensemble(taken="z"), "plain has no input z"),
    Odd("steps_output", _ensemble(given="z"), "plain has no output z"),
    Odd("steps_gone", _ensemble("gone"), "no model gone"),
    Odd("steps_itself", _ensemble("steps_itself"), "leads back"),
    Odd("steps_type", _ensemble().replace("FP32", "FP16"), "a is TYPE_FP16 [4] in steps_type and TYPE_FP32"),
    Odd("steps_shape", _ensemble().replace("[ 4 ]", "[ 5 ]"), "a is TYPE_FP32 [5] in steps_shape"),
    Odd("steps_batch", _ensemble().replace("size: 4", "size: 5"), "max_batch_size is 5, that of plain 4"),
    Odd(
        "steps_unread",
        _ensemble(more=TENSORS.replace('"a"', '"c"').replace(OUTPUT, "")),
        "c is given, and taken neither",
    ),
    Odd("steps_none", _ensemble().partition("ensemble_scheduling")[0], "no step"),
    Odd("steps_group", _ensemble(more="instance_group { count: 1 }\n"), "an ensemble has no instance_group"),
    Odd("steps_backend", _ensemble(more=PYTHON), 'without platform: "ensemble"'),
)
