"""References to inputs in shared memory, good ones and made up ones, to what an instance reads where they say.

Of all that a client may send they are the only thing that chooses a place in memory.
"""

from __future__ import annotations

import atexit
import random
from functools import cache

import numpy as np

from pinstream.errors import InvalidRequest, NoLongerThere, PinstreamError
from pinstream.references import MAGIC, REFERENCE, References
from pinstream.tensors import Array
from tests.fuzz.mutate import INTERESTING, Chance, generator, mutated
from tests.places import TENSOR, held_with, name_of_region, numbers
from yolox_steps.places import Places

MOST_ITEMS = 4


@cache
def _places() -> Places:
    made = Places(name_of_region(), TENSOR.item_bytes)
    atexit.register(made.close)
    return made


@cache
def _readers() -> References:
    return References([TENSOR])


def refused_or_right(chance: Chance) -> tuple[str, PinstreamError | None]:
    """What becomes of references to a few items, some changed: read are these items or none, and all are free after it.

    Returns:
        The outcome, and the error that it was.
    """
    rng = generator(chance)
    made, data = _places(), numbers(rng.randint(1, MOST_ITEMS), rng.randrange(1 << 16))
    held = held_with(made, data)
    told = [row.tobytes() for row in held.references]
    try:
        sent = changed(held.references, TENSOR.item_bytes, rng)
        # An array that goes when this is over, and its places with it.
        found = _readers().resolve({f"{TENSOR.name}_at": sent})[TENSOR.name]
        assert isinstance(found, np.ndarray)
        assert found.tobytes() == b"".join(_meant(row, told, data) for row in sent)
        outcome: tuple[str, PinstreamError | None] = "read", None
        del found
    except (InvalidRequest, NoLongerThere) as error:
        outcome = type(error).__name__, error
    finally:
        made.give_back(held)
    rows = made._rows
    assert not rows["token"].any(), "a place is taken that nobody was told of"
    return outcome


def _meant(row: Array, told: list[bytes], data: Array) -> bytes:
    """The item that a row stands for: that of its reference, or itself."""
    sent = row.tobytes()
    assert len(sent) == TENSOR.item_bytes or sent in told, f"read for {sent!r}, which nobody was sent"
    return sent if len(sent) == TENSOR.item_bytes else data[told.index(sent)].tobytes()


def changed(rows: Array, item_bytes: int, rng: random.Random) -> Array:
    """References to items of so many bytes as somebody might send them, unchanged ones among them."""
    how = rng.randrange(6)
    if how == 0:
        return rows
    if how == 1:  # in any order, some twice, some not
        return rows[[rng.randrange(len(rows)) for _ in range(rng.randint(1, MOST_ITEMS + 2))]]
    if how == 2:  # a part of them
        first = rng.randrange(len(rows))
        return rows[first : rng.randint(first + 1, len(rows))]
    if how == 3:  # one number another, in all of them or in one
        other, at = rows.copy(), 8 * rng.randrange(REFERENCE.size // 8)
        number = rng.choice((*INTERESTING, 125, 126, 1 << 63, (1 << 64) - 1)) + rng.randint(-1, 1)
        which = slice(None) if rng.random() < 0.5 else rng.randrange(len(rows))
        other[which, at : at + 8] = np.frombuffer((number % (1 << 64)).to_bytes(8, "little"), np.uint8)
        return other
    if how == 4:  # of any shape, and mostly of no reference's
        bytes_of = mutated((rows.tobytes(), MAGIC, bytes(item_bytes)), rng)
        width = rng.choice((REFERENCE.size, item_bytes, max(1, len(bytes_of))))
        whole = len(bytes_of) // width * width
        return np.frombuffer(bytes_of[:whole], np.uint8).reshape(-1, width)
    damaged = mutated((rows.tobytes(),), rng)[: rows.size].ljust(rows.size, b"\0")
    return np.frombuffer(damaged, np.uint8).reshape(rows.shape)
