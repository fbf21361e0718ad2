"""Places in shared memory come back: read, lost or left by the killed; and where there is no room there are none."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinstream.errors import NoLongerThere
from pinstream.references import References
from pinstream.tensors import Array
from tests.places import TENSOR, free, held_with, name_of_region, numbers, places, read
from yolox_steps import places as module
from yolox_steps.places import AT_FIRST, DIRECTORY, HEADER, Held, Places, region_name, remove_dead


def test_items_lie_one_behind_the_other_and_nobody_else_opens_them() -> None:
    name = name_of_region()
    with places(name) as made:
        held_with(made, numbers(3))
        file = DIRECTORY / name
        assert file.read_bytes()[HEADER:][: 3 * TENSOR.item_bytes] == numbers(3).tobytes()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size == HEADER + AT_FIRST * TENSOR.item_bytes


def test_it_grows_up_to_the_most(made: Places) -> None:
    held = [made.hold(n) for n in (3, 2, 8, 19)]
    assert [one.first for one in held if one] == [0, 3, 5, 13]
    assert made.hold(1) is None
    assert made.hold(33) is None
    for one in held:
        assert one
        made.give_back(one)
    everything = made.hold(32)
    assert everything is not None
    assert everything.items.shape == (32, TENSOR.item_bytes)


def test_the_lowest_that_suffice_are_taken(made: Places) -> None:
    held = [made.hold(1) for _ in range(32)]
    for i in (3, 4, 9, 10, 11, 30):
        one = held[i]
        assert one
        made.give_back(one)
    assert made.hold(4) is None, "six are free, and no four behind each other"
    for count, first in ((3, 9), (2, 3), (1, 30)):
        found = made.hold(count)
        assert found
        assert found.first == first


def test_none_are_held_for_none(made: Places) -> None:
    held = made.hold(0)
    assert held is not None
    assert held.items.shape == (0, TENSOR.item_bytes)
    assert held.references.shape[0] == 0
    assert free(made) == [True] * 4


def test_without_room_there_is_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(DIRECTORY.iterdir())
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=500, f_frsize=4096, f_blocks=1000))
    with pytest.raises(OSError, match="is to stay half empty, and 4 places would not leave it so"):
        Places(name_of_region(), TENSOR.item_bytes)
    assert set(DIRECTORY.iterdir()) == before


def test_without_room_to_grow_it_stays_as_it_is(
    made: Places, readers: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [held_with(made, numbers(1, i)) for i in range(AT_FIRST)]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=500, f_frsize=4096, f_blocks=1000))
    assert made.hold(1) is None
    np.testing.assert_array_equal(read(readers, held[1].references), numbers(1, 1))
    monkeypatch.undo()
    other = made.hold(1)
    assert other
    assert other.first == 1


def test_what_the_kernel_refuses_is_no_room(made: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert made.hold(AT_FIRST) is not None
    assert made.hold(1) is None


def test_no_link_or_file_of_others_is_written_to(tmp_path: Path) -> None:
    """/dev/shm is everybody's, and so is the name before it has its owner."""
    name, victim = name_of_region(), tmp_path / "victim"
    victim.write_text("precious")
    link = DIRECTORY / f".{name}"
    link.symlink_to(victim)
    try:
        with pytest.raises(FileExistsError):
            Places(name, TENSOR.item_bytes)
    finally:
        link.unlink()
    assert victim.read_text() == "precious"
    assert not (DIRECTORY / name).exists()


def test_what_nobody_came_for_is_free_again_after_a_while(
    made: Places, readers: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = held_with(made, numbers(2))
    assert free(made) == [False, False, True, True]
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.05)
    time.sleep(0.1)
    assert free(made) == [True] * 4
    new = held_with(made, numbers(1, 1))
    assert new.first == 0
    assert free(made)[0] is False
    with pytest.raises(NoLongerThere):
        read(readers, lost.references)
    with pytest.raises(NoLongerThere):
        read(readers, lost.references[:1])
    np.testing.assert_array_equal(read(readers, new.references), numbers(1, 1))


def test_what_is_still_read_is_not_lost(made: Places, readers: References, monkeypatch: pytest.MonkeyPatch) -> None:
    view = read(readers, held_with(made, numbers(2)).references)
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.05)
    time.sleep(0.1)
    assert free(made) == [False, False, True, True]
    np.testing.assert_array_equal(view, numbers(2))
    del view
    assert free(made) == [True] * 4


READS = """
import sys, time
import numpy as np
from pinstream.references import References
from tests.places import TENSOR, read
view = read(References([TENSOR]), np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8).reshape(1, -1))
print("read", flush=True)
time.sleep(60)
"""


# What can be imported here can be there.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that has said something."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout
    assert process.stdout.readline()
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_a_killed_reader_had_is_free_again(made: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    process = started(READS, held_with(made, numbers(1)).references.tobytes().hex())
    try:
        monkeypatch.setattr(module, "LOST_AFTER_S", 0.05)
        time.sleep(0.1)
        assert free(made)[0] is False
        process.send_signal(signal.SIGKILL)
        state = Path(f"/proc/{process.pid}/stat")
        while ") Z " not in state.read_text():
            time.sleep(0.01)
        # Also while nobody has asked how it ended, which Triton does not do.
        assert free(made)[0] is True
    finally:
        killed(process)
    assert free(made)[0] is True


def test_what_is_given_back_is_free_and_read_by_nobody(made: Places, readers: References) -> None:
    held, other = held_with(made, numbers(2)), held_with(made, numbers(1, 1))
    made.give_back(held)
    assert free(made) == [True, True, False, True]
    with pytest.raises(NoLongerThere):
        read(readers, held.references)
    np.testing.assert_array_equal(read(readers, other.references), numbers(1, 1))


def test_the_end_takes_the_name_away() -> None:
    name = name_of_region()
    with places(name) as made:
        assert (DIRECTORY / name).exists()
        made.close()
        assert not (DIRECTORY / name).exists()


def test_the_end_waits_for_what_is_on_its_way_and_not_for_long(
    readers: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    with places() as made:
        held = held_with(made, numbers(1))
        views: list[Array] = []

        def come_late() -> None:
            time.sleep(0.3)
            views.append(read(readers, held.references).copy())

        late = threading.Thread(target=come_late)
        late.start()
        made.close()
        late.join()
        np.testing.assert_array_equal(views[0], numbers(1))
    monkeypatch.setattr(module, "LEAVE_S", 0.2)
    with places() as made:
        made.hold(1)
        began = time.monotonic()
        made.close()
        assert 0.2 <= time.monotonic() - began < 2


def test_the_end_waits_for_nothing_that_is_lost_or_found(readers: References, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.2)
    with places() as made:
        held_with(made, numbers(1))
        time.sleep(0.3)
        found = read(readers, held_with(made, numbers(2, 1)).references)
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 0.1
        np.testing.assert_array_equal(found, numbers(2, 1))


OWNS = """
import sys, time
from yolox_steps.places import Places
places = Places(sys.argv[1], 256)
places.hold(1)
print("made", flush=True)
time.sleep(60)
"""


def test_regions_of_killed_processes_are_removed_and_no_others(made: Places) -> None:
    names = [name_of_region() for _ in range(2)]
    foreign = DIRECTORY / f"pinstream-test-{os.getpid()}_places"
    living, dead = (started(OWNS, name) for name in names)
    try:
        foreign.touch()
        mine = DIRECTORY / made._name
        killed(dead)
        remove_dead()
        assert [path.exists() for path in (*(DIRECTORY / name for name in names), mine, foreign)] == [
            True,
            False,
            True,
            True,
        ]
    finally:
        killed(living)
        foreign.unlink()
    remove_dead()
    assert not (DIRECTORY / names[0]).exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_else_is_called_so_does_not_disturb(make: Callable[[Path], None], tmp_path: Path) -> None:
    odd, link, dead = (DIRECTORY / name_of_region() for _ in range(3))
    make(odd)
    (tmp_path / "elsewhere").touch()
    link.symlink_to(tmp_path / "elsewhere")
    dead.touch()
    try:
        remove_dead()
        assert (tmp_path / "elsewhere").exists()
        assert link.is_symlink()
        assert not dead.exists()
    finally:
        link.unlink()
        odd.rmdir() if odd.is_dir() else odd.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_regions_of_other_users_stay() -> None:
    path = DIRECTORY / name_of_region()
    path.touch()
    try:
        os.chown(path, 12345, 12345)
        remove_dead()
        assert path.exists()
    finally:
        path.unlink()


def test_a_region_is_locked_as_long_as_its_owner_lives(made: Places) -> None:
    with (DIRECTORY / made._name).open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_name_is_that_of_the_stubs_own_region() -> None:
    assert region_name() is None
    stub = DIRECTORY / f"{module.PREFIX}test_{os.getpid()}"
    code = "from yolox_steps.places import region_name; print(region_name())"
    command = [sys.executable, "-c", code, "model.py", stub.name, "1048576"]
    stub.touch()
    try:
        assert subprocess.check_output(command, text=True, env=ENVIRONMENT).strip() == f"{stub.name}_places"
    finally:
        stub.unlink()
    assert subprocess.check_output(command, text=True, env=ENVIRONMENT).strip() == "None"


STEPS = ["hold", "read", "part", "drop", "give_back"]
Views = list[tuple[Array, Array]]


def assert_their_own(views: Views) -> None:
    """Each view has its data, and memory that no other has: it may be mapped twice, so it is told by its bytes."""
    for view, data in views:
        np.testing.assert_array_equal(view, data)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["hold", "read", "part", "drop", "give_back"]), st.integers(1, 8)), max_size=60
    ),
    seed=st.integers(0, 1 << 32),
)
def test_in_any_order_everybody_reads_their_own_and_nothing_stays(steps: list[tuple[str, int]], seed: int) -> None:
    chosen = random.Random(seed)
    with places() as made:
        readers = [References([TENSOR]), References([TENSOR])]
        sent: list[tuple[Held, Array]] = []
        views: Views = []

        def read_rows(told: Array, data: Array) -> None:
            views.append((read(chosen.choice(readers), told), data))

        for number, (step, count) in enumerate(steps):
            if step == "hold":
                data = np.full((count, *TENSOR.shape), number, np.float32)
                data[:, 0, 0] = range(count)
                held = made.hold(count)
                if held:
                    held.items[:] = data.reshape(count, -1).view(np.uint8)
                    sent.append((held, data))
                else:
                    assert sum(len(held.items) for held, _ in sent) + sum(len(view) for view, _ in views) > 0
            elif step == "drop" and views:
                views.pop(chosen.randrange(len(views)))
            elif sent and step != "drop":
                held, data = sent.pop(chosen.randrange(len(sent)))
                if step == "give_back":
                    made.give_back(held)
                elif step == "read":
                    read_rows(held.references, data)
                else:
                    cut = chosen.randint(1, len(data))
                    read_rows(held.references[:cut], data[:cut])
                    if cut < len(data):
                        read_rows(held.references[cut:], data[cut:])
            assert_their_own(views)
            busy = sum(len(held.items) for held, _ in sent) + sum(len(view) for view, _ in views)
            assert free(made).count(False) == busy
        for held, data in sent:
            read_rows(held.references, data)
        sent.clear()
        while views:
            np.testing.assert_array_equal(*views.pop())
        assert all(free(made))
        assert made.hold(made._most) is not None
