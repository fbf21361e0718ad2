"""Whatever `pinstream tune` may write on a GPU, the answers stay as precise as the CPU's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pinstream.engines import find_model_file, inspect
from pinstream.options import Options
from pinstream_cli.tuning.settings import steps
from pinstream_cli.yolox_service import build_service
from tests import tuned
from tests.gpu.conftest import BuildPlan
from tests.held_out import held_out
from tests.server.running import running

MODEL = Path(__file__).parents[2] / "models" / "shapes_nano.onnx"
PICTURES = 200
# As the gates: what FP16 may differ by.
LOSS = 0.002


def test_all_that_is_tried_is_as_precise_as_what_is_configured(
    build: BuildPlan, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    build_service(MODEL, tmp_path / "built")
    plans = build(tmp_path / "built" / "model.onnx", precision="fp16", batch_sizes=(1, 4, 8, 16))
    options = Options()
    spec = inspect(find_model_file(plans, options), options)
    files = [file for file in plans.iterdir() if file.is_file()]
    placed = tuned.place(files, steps(spec, options, on_gpu=True), tmp_path / "models")
    pictures = held_out(PICTURES, processes=os.cpu_count() or 2)
    with running(repositories=[tmp_path / "models"]) as server:
        found = {
            str(settings): tuned.precision_of(server.grpc_url, name, pictures) for name, settings in placed.items()
        }
    for settings, ap in found.items():
        record_property(f"ap, {settings}", round(ap, 4))
    as_configured = found.pop("as configured")
    assert as_configured > 0.8
    assert any("SLOTS" in settings and "BUCKETS" in settings for settings in found), "nothing combined was tried"
    assert len(found) >= 10
    assert found == {settings: pytest.approx(as_configured, abs=LOSS) for settings in found}
