"""Damage to bytes, decided by chance: by a number, or by a generator that somebody else has."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

# Where lengths and counts tip over.
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MOST_OPERATIONS = 6
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# A number names an input. Hypothesis has a generator of its own, by which it makes an input that fails smaller.
Chance = int | random.Random


def generator(chance: Chance) -> random.Random:
    """What decides."""
    return chance if isinstance(chance, random.Random) else random.Random(chance)


def mutated(corpus: Sequence[bytes], chance: Chance, most: int = MOST_OPERATIONS) -> bytes:
    """One of the corpus, damaged in up to `most` places; `chance` alone decides which and how."""
    rng = generator(chance)
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, most)):
        rng.choice(_OPERATIONS)(data, rng, corpus)
    # A wrong checksum would keep the damage from everything behind it.
    if data.startswith(PNG_SIGNATURE) and rng.random() < 0.7:
        return _with_right_checksums(bytes(data))
    return bytes(data)


def mutated_behind(data: bytes, kept: int, chance: Chance) -> bytes:
    """Data with one damage behind its first `kept` bytes, and as long as it was."""
    damaged = mutated((data[kept:],), chance, 1)
    return data[:kept] + damaged[: len(data) - kept].ljust(len(data) - kept, b"\0")


def mutated_json(text: bytes, chance: Chance, values: Sequence[Any]) -> bytes:
    """A JSON text with up to two of its values, wherever they are, made others or taken away."""
    rng = generator(chance)
    content = json.loads(text)
    for _ in range(rng.randint(1, 2)):
        holder = content
        key: Any = rng.choice(_keys(holder))
        while _keys(holder[key]) and rng.random() < 0.7:
            holder, key = holder[key], rng.choice(_keys(holder[key]))
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(values)
    return json.dumps(content).encode()


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _flip(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _early_byte(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    # Headers are where the damage is done.
    if data:
        data[rng.randrange(min(len(data), 64))] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    width = rng.choice((1, 2, 4))
    if len(data) >= width:
        at = rng.randrange(len(data) - width + 1)
        value = rng.choice(INTERESTING) & (1 << 8 * width) - 1
        data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))


def _remove(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    start, end = _range(data, rng)
    del data[start:end]


def _repeat(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    start, end = _range(data, rng)
    data[start:start] = data[start:end]


def _insert(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 40))


def _cut(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    del data[rng.randint(0, len(data)) :]


def _splice(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    other = rng.choice(corpus)
    data[rng.randint(0, len(data)) :] = other[rng.randint(0, len(other)) :]


def _range(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 4, 16, 200, 5000)))


_Operation = Callable[[bytearray, random.Random, Sequence[bytes]], None]
_OPERATIONS: tuple[_Operation, ...] = (_flip, _early_byte, _number, _number, _remove, _repeat, _insert, _cut, _splice)


def _with_right_checksums(data: bytes) -> bytes:
    """The PNG with every chunk's checksum made right, as far as its chunks can be told apart."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join([*out, data[at:]])
