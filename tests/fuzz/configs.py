"""A model repository whose config.pbtxt others wrote, as `pinstream serve` and `pinstream doctor` read it."""

from __future__ import annotations

import random
import re
import tempfile
from functools import cache
from pathlib import Path

from pinstream_cli.doctor.repository import check_repositories
from pinstream_cli.triton.completion import complete_model
from pinstream_cli.triton.repository import RepositoryError, breaks_shell, read_model, read_onnx_here
from pinstream_cli.triton.shared_memory import needs
from tests import onnx_models
from tests.fuzz.mutate import Chance, generator, mutated

_CONFIGS = (
    """backend: "pinstream"
max_batch_size: 8
input { name: "pixels" data_type: TYPE_FP32 dims: [3, 8, 8] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" }
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "SLOTS" value { string_value: "4" } }
version_policy { specific { versions: [1] } }
dynamic_batching { preferred_batch_size: [4] default_queue_policy { max_queue_size: 4 } }
model_warmup { name: "w" batch_size: 1
  inputs { key: "pixels" value { data_type: TYPE_FP32 dims: [3, 8, 8] zero_data: true } } }
optimization { priority: PRIORITY_MAX cuda { graphs: true graph_spec { batch_size: 4 } } }
""",
    """platform: "ensemble"
max_batch_size: 8
input { name: "pixels" data_type: TYPE_FP32 dims: [3, 8, 8] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [10] }
ensemble_scheduling { step { model_name: "beside" model_version: -1
  input_map { key: "pixels" value: "pixels" } output_map { key: "probabilities" value: "probabilities" } } }
""",
    """backend: "python"
input { name: "pixels" data_type: TYPE_FP32 dims: [-1, 8] }
output { name: "probabilities" data_type: TYPE_STRING dims: [1] }
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }
model_transaction_policy { decoupled: true }
""",
)
# What stands for another of its kind: a text, a type, a kind of instance, a number.
_TEXTS = (
    '""',
    '"m"',
    '"../x"',
    '"/etc"',
    '"é"',
    r'"a\000b"',
    f'"{"x" * 300}"',
    '"python"',
    '"$(id)"',
    '"1,4"',
    '"env"',
)
_TYPES = ("TYPE_STRING", "TYPE_BF16", "TYPE_INVALID", "TYPE_BOOL", "99")
_KINDS = ("KIND_GPU", "KIND_MODEL", "KIND_AUTO", "7")
_NUMBERS = ("0", "1", "-1", "2147483647", "-2147483648", "9223372036854775807", "18446744073709551615")
_TOKEN = re.compile(r'"[^"]*"|TYPE_\w+|KIND_\w+|-?\b\d+\b')


def config(chance: Chance) -> str:
    """A config.pbtxt, damaged or with other values, beside the model that it was written for."""
    model = _repository() / "m"
    rng = generator(chance)
    text = _with_other_values(rng) if rng.random() < 0.7 else mutated([c.encode() for c in _CONFIGS], rng, 3)
    (model / "config.pbtxt").write_bytes(text)
    needs([model.parent])
    checks = list(check_repositories([model.parent], None, 0, read_onnx_here))
    for check in checks:
        assert check.found.strip(), check
        assert check.remedy.strip() or check.status != "FIX", check
    try:
        breaks_shell(read_model(model))
    except RepositoryError:
        return "not read"
    fit = "unfit" if any(check.status == "FIX" for check in checks) else "fit"
    # Last, since it may write the file again.
    if complete_model(model) is None:
        return f"{fit}, left to Triton"
    assert read_model(model).config.input, "what was completed has no inputs"
    return f"{fit}, completed"


def _with_other_values(rng: random.Random) -> bytes:
    text = rng.choice(_CONFIGS)
    for _ in range(rng.randint(1, 2)):
        found = rng.choice(list(_TOKEN.finditer(text)))
        others = {'"': _TEXTS, "T": _TYPES, "K": _KINDS}.get(found[0][0], _NUMBERS)
        text = text[: found.start()] + rng.choice(others) + text[found.end() :]
    return text.encode()


@cache
def _repository() -> Path:
    repository = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("beside", "m"):
        version = repository / name / "1"
        version.mkdir(parents=True)
        onnx_models.classifier(version / "model.onnx")
    (repository / "beside" / "config.pbtxt").write_text('backend: "pinstream"\nmax_batch_size: 8\n')
    (repository / "m" / "labels.txt").write_text("one\ntwo\n")
    (version / "model.py").write_text("class TritonPythonModel:\n    pass\n")
    return repository
