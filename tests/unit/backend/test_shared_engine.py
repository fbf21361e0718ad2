"""An engine in a process of its own answers as one in this process does. Runs real processes and real ONNX Runtime."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.engines import open_engine, open_for_instance
from pinstream.engines.base import Engine
from pinstream.errors import ConfigError, EngineError, ModelFileError
from pinstream.loop import Loop
from pinstream.metrics import BatchTimes
from pinstream.options import Options
from pinstream.shared import process
from pinstream.tensors import Array
from tests import onnx_models

Open = Callable[..., Engine]
SHARED = Options(max_batch_size=8, share_engine="on", lanes=2)


@pytest.fixture
def instance() -> Iterator[Open]:
    """Opens a model as an instance does; what it opened is closed after the test."""
    opened: list[Engine] = []

    def run(model: Path, options: Options = SHARED) -> Engine:
        opened.append(open_for_instance(model, options))
        return opened[-1]

    yield run
    for engine in opened:
        engine.close()
    assert not engine_processes()


def engine_processes() -> list[int]:
    """Engine processes that this one has started."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", "engine_process.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def answers(engine: Engine, arrays: list[Array], name: str = "row") -> list[Array]:
    output = engine.spec.outputs[0].name
    requests = [Request({name: array}, len(array), frozenset({output})) for array in arrays]
    found = []
    for answer in Loop(engine).run(requests):
        if answer.error:
            raise answer.error
        array = answer.outputs[output]
        assert isinstance(array, np.ndarray)
        found.append(array.copy())
    return found


def side_by_side(work: Callable[[int], None], count: int) -> None:
    """Run `work` in so many threads, each with its number."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rows(items: int, width: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)


def test_every_request_gets_its_own_rows_whatever_the_shapes(tmp_path: Path, instance: Open) -> None:
    engine = instance(onnx_models.dynamic_width(tmp_path / "m.onnx"))
    sent = [rows(1 + i % 9, 3 + i % 4, i) for i in range(60)]
    for array, answer in zip(sent, answers(engine, sent), strict=True):
        np.testing.assert_array_equal(answer, array * 2)


def test_the_engine_says_of_itself_what_it_says_in_process(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.two_by_two(tmp_path / "m.onnx")
    here = open_engine(model, SHARED)
    there = instance(model)
    assert (there.spec.inputs, there.spec.outputs) == (here.spec.inputs, here.spec.outputs)
    assert there.spec.batch is not None
    assert here.spec.batch is not None
    assert there.spec.batch.largest == here.spec.batch.largest
    here.close()


def test_instances_share_one_process_and_never_each_others_rows(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    engines = [instance(model) for _ in range(4)]
    assert len(engine_processes()) == 1
    wrong: list[str] = []

    def work(number: int) -> None:
        for i in range(40):
            sent = [rows(1 + (i + k) % 8, 5, 1000 * number + 10 * i + k) for k in range(3)]
            for array, answer in zip(sent, answers(engines[number], sent), strict=True):
                if not np.array_equal(answer, array * 2):
                    wrong.append(f"instance {number}, round {i}")

    side_by_side(work, 4)
    assert wrong == []


def test_an_instance_is_told_whether_it_is_alone(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    engines = [instance(model) for _ in range(3)]
    told: list[list[bool]] = [[], [], []]

    def work(number: int) -> None:
        for i in range(60):
            answers(engines[number], [rows(8, 5000, i)])
            told[number].append(engines[number].slots[0].reply["alone"])  # type: ignore[attr-defined]

    work(0)
    assert all(told[0])
    told[0].clear()
    for _ in range(20):  # until two meet
        side_by_side(work, 3)
        if not all(map(all, told)):
            break
    assert not all(map(all, told))
    told[0].clear()
    work(0)
    assert all(told[0])


def test_one_request_the_engine_fails_on_fails_no_other(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    first, second = instance(model), instance(model)
    stop = threading.Event()
    failures: list[Exception] = []

    def spoil() -> None:
        while not stop.is_set():
            with pytest.raises(EngineError):
                answers(second, [rows(2, 13, 0)])

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for i in range(30):
            sent = [rows(2, 5, i), rows(3, 12, i)]
            for array, answer in zip(sent, answers(first, sent), strict=True):
                np.testing.assert_array_equal(answer, array * 2)
    except EngineError as error:
        failures.append(error)
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_a_model_without_a_batch_dimension(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    unbatched = Options(share_engine="on", unbatched_inputs=(("row", 2),))
    engine = instance(model, unbatched)
    assert engine.spec.batch is None
    request = Request({"row": rows(3, 4, 0)}, 1, frozenset({"doubled"}))
    (answer,) = Loop(engine).run([request])
    np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), rows(3, 4, 0) * 2)


def test_a_model_that_cannot_be_loaded_is_the_same_error_as_in_process(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        open_for_instance(tmp_path / "model.onnx", SHARED)
    wait_until_gone()


def test_a_killed_process_fails_what_it_had_and_is_started_again(tmp_path: Path, instance: Open) -> None:
    engine = instance(onnx_models.dynamic_width(tmp_path / "m.onnx"))
    (pid,) = engine_processes()
    slot = engine.slots[0]
    slot.begin({"row": (2, 3)})
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="has ended"):
        run_begun(engine, rows(2, 3, 0))
    assert "has ended" in engine.failure
    np.testing.assert_array_equal(answers(engine, [rows(2, 3, 1)])[0], rows(2, 3, 1) * 2)
    assert engine.failure == ""
    assert engine_processes() != [pid]


def test_a_killed_process_is_gone_though_this_instance_starts_no_other(tmp_path: Path, instance: Open) -> None:
    instance(onnx_models.dynamic_width(tmp_path / "m.onnx"))
    (pid,) = engine_processes()
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, "nobody has waited for it: it is a zombie"
        time.sleep(0.01)


def test_what_was_under_way_is_told_though_another_part_has_started_the_process_again(
    tmp_path: Path, instance: Open
) -> None:
    """The new process knows nothing of the old one's parts: nobody may wait for it to answer them."""
    engine = instance(onnx_models.dynamic_width(tmp_path / "m.onnx"))
    (pid,) = engine_processes()
    os.kill(pid, signal.SIGSTOP)
    first, second = engine.slots[:2]
    first.begin({"row": (2, 3)})
    first.put("row", rows(2, 3, 0), 0)
    engine.enqueue(first, frozenset({"doubled"}))
    os.kill(pid, signal.SIGKILL)
    while not engine.failure:
        time.sleep(0.01)
    second.begin({"row": (2, 3)})
    told: list[Exception] = []

    def wait() -> None:
        try:
            engine.wait(first)
        except EngineError as error:
            told.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()
    assert "has ended" in str(told[0])
    np.testing.assert_array_equal(answers(engine, [rows(2, 3, 1)])[0], rows(2, 3, 1) * 2)


def run_begun(engine: Engine, sent: Array) -> None:
    slot = engine.slots[0]
    slot.put("row", sent, 0)
    engine.enqueue(slot, frozenset({"doubled"}))
    engine.wait(slot)


def test_closing_waits_until_everything_is_freed(tmp_path: Path) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    engines = [open_for_instance(model, SHARED) for _ in range(2)]
    engines[0].close()
    assert len(engine_processes()) == 1
    engines[1].close()
    assert engine_processes() == []


def test_tensors_on_the_gpu_cannot_be_shared(tmp_path: Path) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="SHARE_ENGINE to off"):
        open_for_instance(model, Options(share_engine="on", gpu_inputs=True))


def wait_until_gone() -> None:
    until = time.monotonic() + 10
    while engine_processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert engine_processes() == []


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_before_it_serves_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "ends.py").write_text(f"import sys; sys.stdin.read(); sys.exit({code})")
    monkeypatch.setattr(process, "SCRIPT", tmp_path / "ends.py")
    with pytest.raises(ModelFileError, match=f"ended with {code} while it was starting"):
        open_for_instance(onnx_models.dynamic_width(tmp_path / "m.onnx"), SHARED)


def test_an_address_that_another_user_holds_is_not_trusted(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs to be root, to be somebody else")
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    listens = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
        "s.bind(chr(0) + sys.argv[1]); s.listen(); print(flush=True); s.accept(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", listens, process._address(model, SHARED)[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ModelFileError, match="held by user 65534"):
            open_for_instance(model, SHARED)
        other.kill()


def ran_by(engine: Engine, arrays: list[Array], name: str) -> list[BatchTimes]:
    """The engine's batches that are counted with these requests."""
    told: list[BatchTimes] = []
    output = frozenset({engine.spec.outputs[0].name})
    requests = [Request({name: array}, len(array) if engine.spec.batch else 1, output) for array in arrays]
    Loop(engine, lambda own, ran: told.extend(ran)).run(requests)
    return told


def test_the_engine_s_own_batches_are_counted_once_and_with_their_padding(tmp_path: Path, instance: Open) -> None:
    model = onnx_models.classifier(tmp_path / "c.onnx", batch=4)
    first, second = (instance(model, Options(share_engine="on", lanes=2)) for _ in range(2))
    (alone,) = ran_by(first, [np.zeros((3, 3, 8, 8), np.float32)], "pixels")
    assert (alone.items, alone.size, alone.failed) == (3, 4, False)
    assert {"gather", "scatter"} <= alone.stages.keys()
    told: list[BatchTimes] = []

    def work(engine: Engine) -> None:
        for count in range(1, 12):
            told.extend(ran_by(engine, [np.zeros((count, 3, 8, 8), np.float32)], "pixels"))

    threads = [threading.Thread(target=work, args=(engine,)) for engine in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(batch.items for batch in told) == 2 * sum(range(1, 12))
    assert {batch.size for batch in told} == {4}


def test_failed_batches_are_counted_too(tmp_path: Path, instance: Open) -> None:
    engine = instance(onnx_models.dynamic_width(tmp_path / "m.onnx"))
    told = ran_by(engine, [rows(1, 13, 0)], "row")
    assert [batch.failed for batch in told] == [True]


def test_a_run_without_a_batch_dimension_has_no_padding(tmp_path: Path, instance: Open) -> None:
    unbatched = Options(share_engine="on", unbatched_inputs=(("row", 2),))
    engine = instance(onnx_models.dynamic_width(tmp_path / "m.onnx"), unbatched)
    # How large the answer is shows in the first run, which is run again with room for it.
    assert [(ran.items, ran.size) for ran in ran_by(engine, [rows(3, 4, 0)], "row")] == [(1, 1)] * 2
    assert [(ran.items, ran.size) for ran in ran_by(engine, [rows(3, 4, 0)], "row")] == [(1, 1)]


def test_a_model_of_too_many_tensors_to_be_told_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"of \d{3},\d{3} bytes.* set SHARE_ENGINE to off"):
        open_for_instance(onnx_models.many_inputs(tmp_path / "m.onnx", 1500), SHARED)
    wait_until_gone()


def test_a_part_of_too_many_tensors_fails_alone(tmp_path: Path, instance: Open) -> None:
    engine = instance(onnx_models.many_inputs(tmp_path / "m.onnx", 900))
    inputs = {tensor.name: rows(1, 2, 0) for tensor in engine.spec.inputs}
    request = Request(inputs, 1, frozenset({engine.spec.outputs[0].name}))
    for _ in range(2):
        (answer,) = Loop(engine).run([request])
        assert "set SHARE_ENGINE to off" in str(answer.error)
    assert not engine.failure


def test_parts_of_a_request_that_cannot_be_joined_run_together(tmp_path: Path, instance: Open) -> None:
    # Which widths meet in a batch is chance: a request that is cut in two by another's gets two of them.
    model = onnx_models.as_wide_as_the_largest(tmp_path / "m.onnx")
    engines = [instance(model, Options(max_batch_size=4, share_engine="on", lanes=1)) for _ in range(3)]
    wrong: list[object] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(150):
            items, largest = int(rng.integers(2, 5)), int(rng.integers(1, 9))
            request = Request({"n": np.full((items, 1), largest)}, items, frozenset({"counted"}))
            (answer,) = Loop(engines[number]).run([request])
            counted = np.asarray(answer.outputs["counted"]) if answer.error is None else np.zeros((0, 0))
            if counted.shape[0] != items or not (counted == np.arange(counted.shape[1])).all():
                wrong.append(answer.error or counted.copy())

    side_by_side(work, 3)
    assert wrong == []


@pytest.mark.parametrize("used_before", [False, True])
def test_a_process_that_cannot_be_started_again_says_why(tmp_path: Path, instance: Open, used_before: bool) -> None:
    model = onnx_models.dynamic_width(tmp_path / "m.onnx")
    engine = instance(model)
    counted: list[BatchTimes] = []
    loop = Loop(engine, lambda _, ran: counted.extend(ran))
    request = Request({"row": rows(2, 3, 0)}, 2, frozenset({"doubled"}))
    if used_before:
        assert loop.run([request])[0].error is None
    (process_id,) = engine_processes()
    os.kill(process_id, signal.SIGKILL)
    wait_until_gone()
    model.write_bytes(b"broken")
    answers = loop.run([request, request, request])
    assert all("cannot be started again" in str(answer.error) for answer in answers)
    assert sum(batch.failed for batch in counted) >= 3
    wait_until_gone()
