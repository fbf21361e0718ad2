"""An engine whose process has ended comes back as the model that it was, or not at all. Runs real processes."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pinstream.engines import open_for_instance
from pinstream.engines.base import Engine
from pinstream.errors import EngineError, ModelFileError
from pinstream.shared import process, wire
from pinstream.shared.client import SharedEngine
from pinstream.shared.files import ModelFiles
from tests import onnx_models
from tests.unit.backend.test_shared_engine import SHARED, answers, engine_processes, rows, wait_until_gone

SENT = rows(2, 3, 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = onnx_models.dynamic_width(tmp_path / "1" / "model.onnx")
    (file.parent / "weights.bin").write_bytes(b"as loaded")
    return file


def kill(engine: Engine) -> None:
    """Kill an engine's process, which has answered, with nothing under way."""
    np.testing.assert_array_equal(answers(engine, [SENT])[0], SENT * 2)
    (process_id,) = engine_processes()
    os.kill(process_id, signal.SIGKILL)
    wait_until_gone()
    # A process gives up its memory, by which it is looked for, before its sockets.
    assert select.select([engine._channel], [], [], 5.0)[0]  # type: ignore[attr-defined]
    assert engine.failure


def replace(file: Path) -> None:
    new = onnx_models.classifier(file.with_name(".new"))
    new.rename(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Path.unlink, "model.onnx is gone; start the server again"),
        (replace, "model.onnx was replaced after it was loaded; start the server again"),
        (lambda file: (file.parent / "weights.bin").write_bytes(b"of another model"), "weights.bin was replaced"),
    ],
)
def test_where_its_files_have_changed_it_is_lost(model: Path, change: Callable[[Path], object], told: str) -> None:
    engine = open_for_instance(model, SHARED)
    kill(engine)
    assert engine.recovers
    change(model)
    for _ in range(2):
        with pytest.raises(EngineError, match=f"has ended, and it cannot be started again: .*{told}"):
            answers(engine, [SENT])
        assert engine.failure
        assert not engine.recovers
    assert not engine_processes(), "none was started to find that out"
    engine.close()


def test_what_is_new_beside_its_files_or_was_away_meanwhile_does_not_matter(model: Path) -> None:
    engine = open_for_instance(model, SHARED)
    kill(engine)
    (model.parent / "notes.txt").touch()
    away = model.rename(model.with_name(".away"))
    assert not engine.recovers
    away.rename(model)
    assert engine.recovers
    np.testing.assert_array_equal(answers(engine, [SENT])[0], SENT * 2)
    engine.close()


def test_a_process_that_has_loaded_another_model_is_not_taken(model: Path, tmp_path: Path) -> None:
    other = onnx_models.classifier(tmp_path / "other.onnx")
    refusal = ModelFileError("no memory is left")
    found: list[Callable[[], tuple[socket.socket, wire.Message]]] = []

    def refused() -> tuple[socket.socket, wire.Message]:
        raise refusal

    def while_replaced() -> tuple[socket.socket, wire.Message]:
        connected = process._connect(model, SHARED)
        os.utime(model)
        return connected

    found = [lambda: process._connect(model, SHARED)]
    engine = SharedEngine(lambda: found.pop(0)(), files=ModelFiles(model))
    kill(engine)
    found = [refused, lambda: process._connect(other, SHARED), lambda: process._connect(model, SHARED)]
    for told in (str(refusal), "a model of other inputs, outputs or batches"):
        with pytest.raises(EngineError, match=told):
            answers(engine, [SENT])
        assert not engine.recovers
    np.testing.assert_array_equal(answers(engine, [SENT])[0], SENT * 2)
    assert engine.recovers
    kill(engine)
    found = [while_replaced]
    with pytest.raises(EngineError, match="was replaced after it was loaded"):
        answers(engine, [SENT])
    engine.close()
    wait_until_gone()
