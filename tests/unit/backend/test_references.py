"""What one process left in shared memory another reads where it lies: once, its own, and whatever it is sent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pinstream import references
from pinstream.dlpack import DeviceArray
from pinstream.errors import InvalidRequest, NoLongerThere
from pinstream.references import MOST_PLACES, REFERENCE, References
from pinstream.tensors import Array, TensorSpec
from tests.places import TENSOR, free, held_with, numbers, places, read
from yolox_steps import places as writer
from yolox_steps.places import Places


def changed(references: Array, at: int, data: bytes) -> Array:
    other = references.copy()
    other[:, at : at + len(data)] = np.frombuffer(data, np.uint8)
    return other


def test_both_sides_mean_the_same() -> None:
    for name in ("MAGIC", "HEADER", "ROWS_AT", "ROW", "DIRECTORY"):
        assert getattr(references, name) == getattr(writer, name)
    assert references.REFERENCE.format == writer.REFERENCE.format
    assert f"{writer.PREFIX}*{writer.SUFFIX}" == references.REGIONS
    assert writer.MOST <= MOST_PLACES
    assert writer.LOST_AFTER_S > references.PATIENCE_S, "nobody may read what is filled again"


@pytest.mark.parametrize("dtype", ["UINT8", "BOOL", "FP16", "BF16", "FP32", "INT64"])
@pytest.mark.parametrize("items", [1, 5])
def test_what_is_read_is_what_was_written(dtype: str, items: int) -> None:
    tensor = TensorSpec("x", dtype, (10, 30))
    data = numbers(items, tensor=tensor)
    with places(tensor=tensor) as made:
        got = read(References([tensor]), held_with(made, data).references)
        assert (got.dtype, got.shape) == (tensor.numpy_dtype, (items, 10, 30))
        np.testing.assert_array_equal(got, data)


def test_it_is_read_where_it_lies(made: Places, readers: References) -> None:
    held = held_with(made, numbers(2))
    got = read(readers, held.references)
    held.items[1, 0] = 255
    assert got.view(np.uint8)[1, 0, 0] == 255
    assert not got.flags.writeable


def test_other_inputs_are_left_alone(made: Places, readers: References) -> None:
    other = np.zeros(3)
    inputs = readers.resolve({"y": other, "x_at": held_with(made, numbers(1)).references})
    assert inputs.keys() == {"x", "y"}
    assert inputs["y"] is other
    assert readers.resolve({"x": other}) == {"x": other}


def test_several_regions_at_a_time(made: Places, readers: References) -> None:
    with places() as second:
        views = [read(readers, held_with(region, numbers(2, i)).references) for i, region in enumerate((made, second))]
        for i, view in enumerate(views):
            np.testing.assert_array_equal(view, numbers(2, i))


def test_views_stay_as_the_region_grows(made: Places, readers: References) -> None:
    views = []
    for i in range(8):
        views.append(read(readers, held_with(made, numbers(4, i)).references))
    for i, view in enumerate(views):
        np.testing.assert_array_equal(view, numbers(4, i))
    assert made.hold(1) is None
    del view
    views.clear()
    assert free(made) == [True] * 32


def test_places_are_free_with_the_last_view_and_not_before(made: Places, readers: References) -> None:
    view = read(readers, held_with(made, numbers(3)).references)
    part = view[1:][0, 2:].reshape(-1)[3:]
    del view
    assert free(made) == [False] * 3 + [True]
    del part
    assert free(made) == [True] * 4


def test_what_was_read_is_not_read_again(made: Places, readers: References) -> None:
    held = held_with(made, numbers(2))
    view = read(readers, held.references)
    for others in (readers, References([TENSOR])):
        with pytest.raises(NoLongerThere):
            read(others, held.references)
    np.testing.assert_array_equal(view, numbers(2))
    assert free(made)[:2] == [False, False]
    del view
    with pytest.raises(NoLongerThere):
        read(readers, held.references)
    assert free(made)[:2] == [True, True]


READS = """
import sys, time
import numpy as np
from pinstream.errors import NoLongerThere
from pinstream.references import References
from tests.places import TENSOR, read
readers, got = References([TENSOR]), []
for line in sys.stdin:
    when, told = line.split()
    while time.monotonic() < float(when):
        pass
    try:
        got.append(read(readers, np.frombuffer(bytes.fromhex(told), np.uint8).reshape(1, -1)))
        print("read", flush=True)
    except NoLongerThere:
        print("refused", flush=True)
    if "drop" in sys.argv:
        got.clear()
"""


def reader(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READS, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def have_read(process: subprocess.Popen[str], told: Array, when: float = 0) -> None:
    assert process.stdin
    process.stdin.write(f"{when} {told.tobytes().hex()}\n")
    process.stdin.flush()


def what_it_says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_of_two_processes_that_are_sent_the_same_one_reads(made: Places) -> None:
    """The first to have done so would free it for others, under the second."""
    processes = [reader(), reader()]
    try:
        for i in range(10 * 32):
            held = made.hold(1)
            assert held is not None
            when = time.monotonic() + (5 if i == 0 else 0.001)
            for process in processes:
                have_read(process, held.references, when)
            assert sorted(map(what_it_says, processes)) == ["read", "refused"], i
            made.give_back(held)
    finally:
        for process in processes:
            process.communicate()


def test_what_has_waited_for_too_long_is_not_read(
    made: Places, readers: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_with(made, numbers(1))
    monkeypatch.setattr(references, "PATIENCE_S", 0.05)
    time.sleep(0.1)
    with pytest.raises(NoLongerThere, match="send the request again"):
        read(readers, held.references)
    monkeypatch.undo()
    read(readers, held.references)


def test_what_was_filled_again_while_it_was_taken_stays_the_others(
    made: Places, readers: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_with(made, numbers(1))
    others: list[Array] = []

    def filled_again() -> int:
        made.give_back(held)
        others.append(held_with(made, numbers(1, 7)).references)
        return 12345

    monkeypatch.setattr("os.getpid", filled_again)
    with pytest.raises(NoLongerThere):
        read(readers, held.references)
    monkeypatch.undo()
    np.testing.assert_array_equal(read(readers, others[0]), numbers(1, 7))


def test_another_token_reads_nothing(made: Places, readers: References) -> None:
    held = held_with(made, numbers(1))
    for token in (bytes(16), b"x" * 16):
        with pytest.raises(NoLongerThere):
            read(readers, changed(held.references, 24, token))
    with pytest.raises(NoLongerThere):
        read(readers, changed(held_with(made, numbers(1)).references, 8, b"\3"))
    np.testing.assert_array_equal(read(readers, held.references), numbers(1))


def test_a_token_of_nothing_is_none(made: Places, readers: References) -> None:
    """As free places have it."""
    held = held_with(made, numbers(1))
    made.give_back(held)
    for references_ in (held.references, changed(held.references, 24, bytes(16))):
        with pytest.raises(NoLongerThere):
            read(readers, references_)
    assert free(made) == [True] * 4


@pytest.mark.parametrize("first", [4, 31, MOST_PLACES - 1])
def test_a_place_behind_the_end_is_not_there(made: Places, readers: References, first: int) -> None:
    held = held_with(made, numbers(1))
    with pytest.raises(NoLongerThere):
        read(readers, changed(held.references, 8, first.to_bytes(8, "little")))


@pytest.mark.parametrize("first", [MOST_PLACES, 1 << 31, (1 << 63), (1 << 64) - 1])
def test_a_number_of_no_place_is_refused(made: Places, readers: References, first: int) -> None:
    held = held_with(made, numbers(1))
    with pytest.raises(InvalidRequest, match="holds no references to items of 256 bytes"):
        read(readers, changed(held.references, 8, first.to_bytes(8, "little")))


@pytest.mark.parametrize("nbytes", [0, 1, 255, 257, (1 << 64) - 1])
def test_a_place_of_another_size_is_refused(made: Places, readers: References, nbytes: int) -> None:
    held = held_with(made, numbers(1))
    with pytest.raises(InvalidRequest, match="holds no references"):
        read(readers, changed(held.references, 16, nbytes.to_bytes(8, "little")))


def test_a_region_of_other_items_has_none(readers: References) -> None:
    with places(tensor=TensorSpec("x", "FP32", (9, 9))) as other:
        held = other.hold(1)
        assert held is not None
        with pytest.raises(NoLongerThere):
            read(readers, changed(held.references, 16, TENSOR.item_bytes.to_bytes(8, "little")))


def test_references_that_do_not_follow_each_other_are_refused(made: Places, readers: References) -> None:
    first, second = (held_with(made, numbers(2, i)).references for i in range(2))
    for rows in ([first[1], first[0]], [first[0], first[0]], [first[1], second[0]], [first[0], second[1]]):
        with pytest.raises(InvalidRequest, match="that lie one behind the other; send 'x' itself"):
            read(readers, np.stack(rows))
    # A part of what was held may be, and the rest by itself.
    for i, held in enumerate((first, second)):
        np.testing.assert_array_equal(read(readers, held[1:]), numbers(2, i)[1:])
        np.testing.assert_array_equal(read(readers, held[:1]), numbers(2, i)[:1])


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, REFERENCE.size), np.uint8),
        np.zeros((1, REFERENCE.size), np.uint8),
        np.full((3, REFERENCE.size), 255, np.uint8),
    ],
    ids=["none", "zeros", "ones"],
)
def test_what_is_no_reference_is_refused(readers: References, rows: Array) -> None:
    with pytest.raises(InvalidRequest, match="holds no references"):
        read(readers, rows)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, REFERENCE.size - 1), np.uint8),
        np.zeros((1, 0), np.uint8),
        np.zeros((1, TENSOR.item_bytes + 1), np.uint8),
        np.zeros((1, REFERENCE.size), np.int8),
        np.zeros(REFERENCE.size, np.uint8),
        np.zeros((1, 1, REFERENCE.size), np.uint8),
        np.zeros((), np.uint8),
        np.array([[b"x"]], object),
    ],
    ids=["short", "nothing", "long", "int8", "rank 1", "rank 3", "rank 0", "strings"],
)
def test_another_shape_or_type_is_refused_with_what_was_expected(readers: References, rows: Array) -> None:
    with pytest.raises(InvalidRequest, match=r"expected uint8 \[batch, 72\].*or the bytes.*\[batch, 256\]; send 'x'"):
        read(readers, rows)


def test_the_bytes_themselves_are_taken(readers: References) -> None:
    data = numbers(3)
    np.testing.assert_array_equal(read(readers, data.reshape(3, -1).view(np.uint8)), data)
    # Not aligned, and with steps in between.
    for rows in (np.zeros((6, 300), np.uint8)[::2, 3:259], np.zeros((3, 512), np.uint8)[:, ::2]):
        rows[:] = data.reshape(3, -1).view(np.uint8)
        np.testing.assert_array_equal(read(readers, rows), data)
    assert read(readers, np.zeros((0, 256), np.uint8)).shape == (0, 8, 8)


def test_both_are_refused_and_stay(made: Places, readers: References) -> None:
    held = held_with(made, numbers(1))
    with pytest.raises(InvalidRequest, match="has both 'x' and 'x_at'; send one of them"):
        readers.resolve({"x": numbers(1), "x_at": held.references})
    np.testing.assert_array_equal(read(readers, held.references), numbers(1))


def test_references_on_the_gpu_are_refused(readers: References) -> None:
    array = DeviceArray(1 << 40, (1, REFERENCE.size), np.dtype(np.uint8), 0)
    with pytest.raises(InvalidRequest, match="is on the GPU; send it in host memory"):
        readers.resolve({"x_at": array})
