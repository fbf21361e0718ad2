"""Whatever `pinstream tune` may write on this machine, the answers stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream.engines import inspect
from pinstream.options import Options
from pinstream_cli.tuning.settings import steps
from pinstream_cli.yolox_service import build_service
from tests import tuned
from tests.held_out import held_out
from tests.server.running import running

MODEL = Path(__file__).parents[2] / "models" / "shapes_nano.onnx"
PICTURES = 30
# Two cores, whatever there is: more would only try more of the same.
CORES = 2


def test_all_that_is_tried_is_as_precise_as_what_is_configured(tmp_path: Path) -> None:
    build_service(MODEL, tmp_path / "built")
    graph = tmp_path / "built" / "model.onnx"
    spec = inspect(graph, Options())
    placed = tuned.place([graph], steps(spec, Options(), on_gpu=False, cores=CORES), tmp_path / "models")
    pictures = held_out(PICTURES)
    with running(repositories=[tmp_path / "models"]) as server:
        found = {
            str(settings): tuned.precision_of(server.grpc_url, name, pictures) for name, settings in placed.items()
        }
    as_configured = found.pop("as configured")
    assert as_configured > 0.8
    assert len(found) == 9  # three shares of the cores, two delays, and four of both
    assert found == {settings: pytest.approx(as_configured, abs=0.0005) for settings in found}
