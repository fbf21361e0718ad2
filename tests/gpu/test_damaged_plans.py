"""Plans whose body is damaged: TensorRT itself reads it, in processes of their own, since it may end them.

The fuzz has what TensorRT for RTX reads without a GPU. Here they are loaded, and run once.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from pinstream import cuda
from pinstream.engines import find_model_file, open_engine
from pinstream.errors import PinstreamError
from pinstream.options import Options
from tests import onnx_models
from tests.fuzz.long import run_inputs
from tests.fuzz.mutate import mutated_behind
from tests.fuzz.targets import PLAN_HEADER_BYTES
from tests.gpu.conftest import BuildPlan

PLANS = 300
# How a process ends that has lost its GPU context to a plan: the next one needs another process.
LOST = 77
# Of 299 it was 36 (TensorRT for RTX 1.4): more than twice as many are another fault than the one that is known.
MOST_CRASHES = 0.25
# docs/security.md says so of damaged plans; as long as it does, it is none of our faults.
SAID = "may end the process that loads it"


def load_damaged(plan: Path, cache_dir: Path, seed: int) -> str:
    """Load a plan whose body is damaged; whole for seed 0. There is no model.json that knows its digest."""
    whole = plan.read_bytes()
    directory = plan.parent / "damaged"
    directory.mkdir(exist_ok=True)
    (directory / "model.plan").write_bytes(mutated_behind(whole, PLAN_HEADER_BYTES, seed) if seed else whole)
    options = Options(cache_dir=str(cache_dir))
    try:
        open_engine(find_model_file(directory, options), options).close()
    except PinstreamError as error:
        if cuda.is_lost():
            os._exit(LOST)
        return "refused" if str(error).strip() else "refused without a word"
    return "loaded"


def test_a_damaged_body_is_refused_in_words_or_runs(
    build: BuildPlan, cache_dir: Path, tmp_path: Path, record_property: Any
) -> None:
    built = build(onnx_models.classifier(tmp_path / "classifier.onnx"), batch_sizes=(1,))
    plan = tmp_path / "whole.plan"
    plan.write_bytes(find_model_file(built, Options()).read_bytes())
    assert run_inputs(partial(load_damaged, plan, cache_dir), 0, 1).outcomes["loaded"] == 1, "the whole one"
    done = run_inputs(partial(load_damaged, plan, cache_dir), 1, PLANS)
    ends = Counter(failure.text for failure in done.failures)
    lost = ends.pop(f"ended the process with code {LOST}", 0)
    crashed = sum(ends.pop(text) for text in [*ends] if text.startswith("ended the process"))
    loaded, refused = done.outcomes["loaded"], done.outcomes["refused"]
    for name, count in (("loaded", loaded), ("refused", refused), ("lost_context", lost), ("crashed", crashed)):
        record_property(name, count)
    assert not ends
    assert loaded + refused + lost + crashed == PLANS, done.outcomes
    assert refused
    assert crashed + lost <= MOST_CRASHES * PLANS, done.outcomes
    security = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    assert not crashed or SAID in " ".join(security.split())
