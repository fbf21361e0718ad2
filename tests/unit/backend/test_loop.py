"""The loop answers every request once, with its own data, whatever the engine does. Runs real ONNX Runtime."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines import open_engine
from pinstream.engines.base import Engine, Slot
from pinstream.loop import CANCEL_CHECK_AFTER_S, Answer, Loop
from pinstream.metrics import BatchTimes
from pinstream.options import Options
from pinstream.tensors import Array, BatchSizes
from tests import onnx_models
from tests.host_engine import POISON, HostEngine
from tests.served_engine import served_instance


@pytest.fixture
def doubling(tmp_path: Path) -> Iterator[Engine]:
    """Doubles rows of any width; fails on rows of width 13."""
    engine = open_engine(onnx_models.dynamic_width(tmp_path / "m.onnx"), Options(max_batch_size=4, lanes=2, slots=2))
    yield engine
    engine.close()


def output(answer: Answer, name: str) -> Array:
    array = answer.outputs[name]
    assert isinstance(array, np.ndarray)
    return array


def sent(request: Request) -> Array:
    array = request.inputs["row"]
    assert isinstance(array, np.ndarray)
    return array


def rows(items: int, width: int = 5, seed: int = 0, *, wanted: bool = True) -> Request:
    data = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)
    return Request({"row": data}, items, frozenset({"doubled"} if wanted else ()))


def test_many_requests_over_few_slots_each_get_their_own_rows(doubling: Engine) -> None:
    requests = [rows(1 + i % 9, 3 + i % 3, seed=i) for i in range(40)]
    answers = Loop(doubling).run(requests)
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(output(answer, "doubled"), sent(request) * 2)


def test_answers_stay_right_until_the_next_run(doubling: Engine) -> None:
    requests = [rows(4, seed=i) for i in range(7)]
    answers = Loop(doubling).run(requests)
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(output(answer, "doubled"), sent(request) * 2)


def test_a_request_the_engine_fails_on_does_not_fail_the_others(doubling: Engine) -> None:
    loop = Loop(doubling)
    requests = [rows(2), rows(2, width=13), rows(3, seed=2)]
    answers = loop.run(requests)
    assert answers[1].error is not None
    assert "out of data bounds" in str(answers[1].error)
    for i in (0, 2):
        np.testing.assert_array_equal(output(answers[i], "doubled"), sent(requests[i]) * 2)
    assert loop.run([rows(1)])[0].error is None, "the loop is usable after an error"


def test_only_wanted_outputs_are_answered(doubling: Engine) -> None:
    answers = Loop(doubling).run([rows(1), rows(1, wanted=False)])
    assert list(answers[0].outputs) == ["doubled"]
    assert answers[1].outputs == {}


def test_a_request_cancelled_while_it_waits_is_not_computed(tmp_path: Path) -> None:
    engine = open_engine(onnx_models.slow(tmp_path / "slow.onnx"), Options(max_batch_size=8, lanes=1, slots=1))
    seen: list[BatchTimes] = []
    data = np.zeros((4, 512, 512), np.float32)
    requests = [
        Request({"x": data}, 4, frozenset({"y"})),
        Request({"x": data}, 4, frozenset({"y"}), cancelled=lambda: True),
    ]
    answers = Loop(engine, observe=lambda times, ran: seen.append(times)).run(requests)
    engine.close()
    assert [answer.cancelled for answer in answers] == [False, True]
    assert len(seen) == 4, "the four items of the cancelled request never ran"


def test_a_request_cancelled_while_its_batch_failed_is_not_run_again() -> None:
    engine = HostEngine(BatchSizes((2,)))
    good = np.ones((1, 3), np.float32)
    requests = [
        Request({"row": np.full((1, 3), POISON, np.float32)}, 1, frozenset({"doubled"})),
        Request({"row": good}, 1, frozenset({"doubled"}), cancelled=lambda: True),
    ]
    # As long as it takes until those that wait are asked again.
    answers = Loop(engine, observe=lambda times, ran: time.sleep(2 * CANCEL_CHECK_AFTER_S)).run(requests)
    engine.close()
    assert [(answer.error is None, answer.cancelled) for answer in answers] == [(False, False), (True, True)]
    assert engine.batches == 2, "the batch of both, and the one that is at fault by itself"


def test_a_static_batch_is_padded_and_the_padding_stays_inside(tmp_path: Path) -> None:
    engine = open_engine(onnx_models.classifier(tmp_path / "c.onnx", batch=4), Options())
    pixels = np.random.default_rng(1).normal(size=(6, 3, 8, 8)).astype(np.float32)
    requests = [Request({"pixels": part}, len(part), frozenset({"probabilities"})) for part in (pixels[:1], pixels[1:])]
    answers = Loop(engine).run(requests)
    engine.close()
    got = np.concatenate([output(answer, "probabilities") for answer in answers])
    assert got.shape == (6, 10)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
    assert len(np.unique(got.round(6), axis=0)) == 6


def test_requests_of_a_model_that_is_found_not_to_keep_the_batch_run_alone(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    model = onnx_models.save(
        tmp_path / "sum.onnx",
        [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=1)],
        [("x", TensorProto.FLOAT, ["n", 2])],
        [("y", TensorProto.FLOAT, ["n", 2])],
    )
    engine = open_engine(model, Options(max_batch_size=4))
    assert engine.spec.batch is None
    requests = [Request({"x": np.ones((1, 2), np.float32) * i}, 1, frozenset({"y"})) for i in range(3)]
    answers = Loop(engine).run(requests)
    engine.close()
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(output(answer, "y"), [[i, i]])


class LosingItems(HostEngine):
    """Says that it keeps the batch, and gives what `left` leaves of each."""

    left: Callable[[Array], Array]

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        return {name: self.left(np.asarray(whole)) for name, whole in super().wait(slot).items()}


@pytest.mark.parametrize(
    "left",
    [lambda rows: rows[1:], lambda rows: np.concatenate([rows[:1], rows]), lambda rows: np.asarray(rows.max())],
    ids=["fewer", "more", "a number"],
)
@pytest.mark.parametrize("through", [contextlib.closing, served_instance], ids=["here", "shared"])
def test_a_model_that_does_not_keep_the_batch_is_an_error_and_not_a_mix_up(
    left: Callable[[Array], Array], through: Callable[[Engine], AbstractContextManager[Engine]]
) -> None:
    losing = LosingItems(BatchSizes((2,), exact=True))
    losing.left = left
    with through(losing) as engine:
        answers = Loop(engine).run([rows(1, seed=i) for i in range(4)])
    assert all("does not keep the batch dimension" in str(answer.error) for answer in answers), answers


def test_parts_of_a_request_that_have_other_widths_are_an_error(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    # One row for each item, and as many columns as the batch has items.
    model = onnx_models.save(
        tmp_path / "gram.onnx",
        [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 2])],
        [("y", TensorProto.FLOAT, ["n", "m"])],
    )
    engine = open_engine(model, Options(max_batch_size=4))
    # Whatever was found to be the best batch here: in batches of one all widths are the same.
    engine.spec = replace(engine.spec, batch=BatchSizes((4,), exact=True))
    answer = Loop(engine).run([Request({"x": np.ones((5, 2), np.float32)}, 5, frozenset({"y"}))])[0]
    engine.close()
    assert "cannot be joined" in str(answer.error)


def test_a_batch_that_fails_is_observed_as_failed(doubling: Engine) -> None:
    seen: list[BatchTimes] = []
    Loop(doubling, observe=lambda times, ran: seen.append(times)).run([rows(1, width=13)])
    assert [(times.failed, times.items) for times in seen] == [(True, 1)]


@pytest.mark.parametrize("poisoned", [True, False])
def test_what_failed_keeps_nothing_that_the_requests_lie_in(poisoned: bool) -> None:
    """Places in shared memory are free when nobody has a view of them any more, and not when garbage is looked for."""
    engine = HostEngine(BatchSizes((1, 2)), failures=0.0 if poisoned else 1.0)
    requests = [Request({"row": np.full((1, 4), POISON)}, 1, frozenset({"doubled"})) for _ in range(2)]
    sources = [weakref.ref(sent(request)) for request in requests]
    gc.disable()
    try:
        answers = Loop(engine).run(requests)
        assert all(answer.error for answer in answers)
        del requests, answers
        assert [source() is None for source in sources] == [True, True]
    finally:
        gc.enable()
