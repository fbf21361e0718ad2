"""How long places wait for whoever is sent their references."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pinstream import references
from pinstream.errors import NoLongerThere
from pinstream.references import References
from tests.places import TENSOR, held_with, name_of_region, numbers, places, read
from yolox_steps.places import AT_FIRST, DIRECTORY, LEAVE_S, LOST_AFTER_S, PATIENCE_S, Places, remove_dead

WITHIN_S = 5.0


@pytest.fixture
def soon() -> Iterator[Places]:
    """Places that are to be read within seconds."""
    with places(most=AT_FIRST, read_within_s=WITHIN_S) as made:
        yield made


def later(made: Places, seconds: float) -> None:
    """As if so much time had passed since all places were filled."""
    made._rows["filled"] -= seconds


def test_what_was_killed_before_it_had_its_name_is_removed_once_nobody_can_be_about_to_give_it() -> None:
    old, new = (DIRECTORY / f".{name_of_region()}" for _ in range(2))
    for path in (old, new):
        path.touch(0o600)
    os.utime(old, (0, time.time() - LOST_AFTER_S - 1))
    try:
        remove_dead()
        assert not old.exists()
        assert new.exists()
    finally:
        new.unlink()


def test_reader_and_writer_know_of_the_same_time() -> None:
    assert PATIENCE_S == references.PATIENCE_S
    assert LOST_AFTER_S >= PATIENCE_S + 10


def test_what_is_read_in_time_is_there(soon: Places, readers: References) -> None:
    held = held_with(soon, numbers(2))
    later(soon, WITHIN_S - 0.5)
    np.testing.assert_array_equal(read(readers, held.references), numbers(2))


@pytest.mark.parametrize("filled", [False, True])
def test_what_is_read_too_late_is_refused_and_free_ten_seconds_later(
    soon: Places, readers: References, filled: bool
) -> None:
    held = held_with(soon, numbers(AT_FIRST))
    if filled:
        soon.filled(held)
    later(soon, WITHIN_S + 0.5)
    with pytest.raises(NoLongerThere):
        read(readers, held.references)
    assert soon.hold(1) is None, "somebody may have begun to read"
    later(soon, 10)
    new = held_with(soon, numbers(AT_FIRST, 1))
    np.testing.assert_array_equal(read(readers, new.references), numbers(AT_FIRST, 1))


def test_the_time_to_read_begins_when_they_are_filled(made: Places, readers: References) -> None:
    """However long that took."""
    held = held_with(made, numbers(2))
    later(made, 2 * PATIENCE_S)
    with pytest.raises(NoLongerThere):
        read(readers, held.references)
    made.filled(held)
    np.testing.assert_array_equal(read(readers, held.references), numbers(2))


def test_what_is_on_its_way_keeps_the_name_for_as_long_whatever_the_time_to_read() -> None:
    made = Places(name_of_region(), TENSOR.item_bytes, read_within_s=WITHIN_S)
    made.filled(held_with(made, numbers(1)))
    later(made, LEAVE_S - 0.3)
    began = time.monotonic()
    made.close()
    assert 0.2 < time.monotonic() - began < 2
