"""Requests whose senders give up or are wrong, among others: at an instance with one batch under way, or with two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests import onnx_models
from tests.giving_up import CONFIG, MODEL, give_up_in_a_batch, give_up_while_waiting
from tests.gpu.serving import parameters
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running

EXECUTIONS, BATCH = 2, 2


@contextlib.contextmanager
def serving_heavy(directory: pytest.TempPathFactory, config: str) -> Iterator[Running]:
    repository = directory.mktemp("heavy")
    onnx_models.heavy(add_model(repository, MODEL, ONE_LINE + config), size=512, work=40)
    with running(repositories=[repository]) as started:
        yield started


@pytest.mark.parametrize("how", [{}, {"SHARE_ENGINE": "on", "EXECUTIONS": str(EXECUTIONS)}], ids=["one", "two"])
def test_who_gives_up_while_waiting_costs_nothing_and_who_is_wrong_is_told_so(
    tmp_path_factory: pytest.TempPathFactory, how: dict[str, str]
) -> None:
    with serving_heavy(tmp_path_factory, CONFIG + parameters(**how)) as server:
        give_up_while_waiting(server, EXECUTIONS * BATCH)


def test_who_gives_up_before_its_batch_has_begun_is_left_out_of_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = "max_batch_size: 16\ndynamic_batching { }\n" + parameters(BUCKETS="1,2", SLOTS="2")
    with serving_heavy(tmp_path_factory, config) as server:
        give_up_in_a_batch(server, most=16, give_up=4)
