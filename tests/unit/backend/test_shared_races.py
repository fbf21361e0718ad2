"""Instances that come, work and go at any moment while their engine's process is killed at any other: by many seeds.

`PINSTREAM_SEEDS=200` tries more of them than `make test` does.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from pinstream.engines import open_for_instance
from pinstream.errors import EngineError, ModelFileError
from tests import onnx_models
from tests.unit.backend.test_shared_engine import SHARED, answers, engine_processes, rows, wait_until_gone

SEEDS = int(os.environ.get("PINSTREAM_SEEDS", "6"))
INSTANCES = 4
# The end of a deadlock.
PATIENCE_S = 90


class Race:
    """Instances as threads, each a while after the other, and one thread that kills."""

    def __init__(self, model: Path, seed: int) -> None:
        self._model = model
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self.wrong: list[str] = []
        self.right = 0
        self._kills = 0

    def run(self, kills: int) -> None:
        self._kills = kills
        instances = [threading.Thread(target=self._instance, args=(self._rng.random(),)) for _ in range(INSTANCES)]
        killer = threading.Thread(target=self._kill, args=(kills,))
        for thread in (*instances, killer):
            thread.daemon = True
            thread.start()
        for thread in instances:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "deadlock"
        self._over.set()
        killer.join(PATIENCE_S)

    def _instance(self, seed: float) -> None:
        rng = random.Random(seed)
        for life in range(2):
            self._over.wait(rng.uniform(0, 0.5))
            try:
                engine = open_for_instance(self._model, SHARED)
            except ModelFileError as error:  # killed while it was loading
                if not self._kills or "ended with" not in str(error):
                    self.wrong.append(str(error))
                continue
            for number in range(rng.randint(0, 12)):
                sent = rows(rng.randint(1, 9), rng.randint(1, 5), int(seed * 1e9) + 100 * life + number)
                try:
                    if np.array_equal(answers(engine, [sent])[0], sent * 2):
                        self.right += 1
                    else:
                        self.wrong.append(f"another's rows for seed {seed}")
                except EngineError as error:
                    if not self._kills or "ended" not in str(error):
                        self.wrong.append(str(error))
            engine.close()

    def _kill(self, kills: int) -> None:
        for _ in range(kills):
            if self._over.wait(self._rng.uniform(0.1, 1.0)):
                return
            for pid in engine_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.dynamic_width(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nobody_gets_anothers_rows_and_nothing_is_left(model: Path, seed: int) -> None:
    race = Race(model, seed)
    race.run(kills=seed % 3)
    assert race.wrong == []
    if seed % 3 == 0:
        assert race.right > 0
    # Whatever was killed, the next one who comes is answered.
    engine, sent = open_for_instance(model, SHARED), rows(2, 3, seed)
    np.testing.assert_array_equal(answers(engine, [sent])[0], sent * 2)
    engine.close()
    wait_until_gone()
