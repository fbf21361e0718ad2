"""Messages between an instance and the engine's process: JSON over a Unix socket, one message a packet.

| from | message | |
|---|---|---|
| engine | {"spec": {...}} or {"error": text, "kind": class name} | once, when the engine is loaded or could not be |
| instance | {"memory": slot, "places": {name: [offset, bytes]}, "bytes": n} and a file descriptor | a slot's memory |
| instance | {"region": number} and a file descriptor | a region of Triton's own shared memory |
| instance | {"region": number} | it has grown |
| instance | {"leave": number} | its file has gone, and nothing more will lie there |
| instance | {"run": slot, "items": n, "shapes": {input: shape}, "places": {...}, "wanted": [output]} | it is gathered |
| engine | {"done": slot, "shapes": {output: shape}, "stages": {}, "graph": bool, "ran": []} | outputs are there |
| engine | {"done": slot, "room": {output: bytes}, "ran": []} | no room for these: share larger memory, run again |
| engine | {"stays": true} | to an instance that leaves: others are still here, and the engine stays for them |
| engine | {"done": slot, "error": text, "lost": bool, "ran": []} | the batch failed; `lost`: and every later one will |

`places` has for each input where its items lie, in their order: [[region, offset in bytes, items], ...]; region -1 is
the slot's own memory. `ran` has the engine's batches, as metrics.BatchTimes, of which this part was the first. `stages`
are in seconds. Every answer to a run also has `alone`: no other instance had anything under way.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from pinstream.errors import EngineError
from pinstream.tensors import BatchSizes, ModelSpec, TensorSpec

# A Unix socket's default buffer takes packets of about 200 KB; a model of a thousand tensors takes half of that.
LARGEST_MESSAGE = 200_000
# The region that is the slot's own memory.
SLOT = -1
Message = dict[str, Any]
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class _Received(threading.local):
    """Where a thread's messages come in: getting 200 KB anew for each takes longer than reading it."""

    def __init__(self) -> None:
        self.room = bytearray(LARGEST_MESSAGE)


_received = _Received()


def packed(message: Message) -> bytes:
    """A message as it is sent.

    Raises:
        EngineError: It is too long, for a model of a great many tensors.
    """
    packet = _ENCODER.encode(message).encode()
    if len(packet) > LARGEST_MESSAGE:
        raise EngineError(
            f"a message between an instance and its engine would be of {len(packet):,} bytes, and "
            f"{LARGEST_MESSAGE:,} are the most; set SHARE_ENGINE to off in config.pbtxt"
        )
    return packet


def send(channel: socket.socket, message: Message, fd: int | None = None) -> None:
    """Send a message, and with it a file descriptor.

    Raises:
        OSError: The other side has gone.
        EngineError: It is too long.
    """
    packet = packed(message)
    if fd is None:
        channel.send(packet)
    else:
        socket.send_fds(channel, [packet], [fd])


def receive(channel: socket.socket) -> tuple[Message | None, int | None]:
    """The next message and the file descriptor that came with it.

    Returns:
        None for the message where the other side has gone.
    """
    try:
        nbytes, ancillary, _, _ = channel.recvmsg_into([_received.room], socket.CMSG_LEN(4))
    except ConnectionError:
        return None, None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[:4])
    message = json.loads(_received.room[:nbytes]) if nbytes else None
    return message, (descriptors[0] if descriptors else None)


def is_readable(channel: socket.socket, seconds: float = 0.0) -> bool:
    """Whether receive would return at once within `seconds`, be it with the news that the other side has gone."""
    return bool(select.select([channel], [], [], seconds)[0])


def has_gone(channel: socket.socket) -> bool:
    """Whether the other side has closed, and nothing of it is left to be read."""
    if channel.fileno() < 0:
        return True
    try:
        return not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def peer(channel: socket.socket) -> tuple[int, int]:
    """Process and user of the other side, as the kernel knows them."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    return process, user


def same_user(channel: socket.socket) -> bool:
    """Whether the other side runs as our own user."""
    return peer(channel)[1] == os.geteuid()


def spec_to_json(spec: ModelSpec) -> Message:
    """A ModelSpec as a message has it."""

    def tensors(specs: tuple[TensorSpec, ...]) -> list[Message]:
        return [{"name": t.name, "dtype": t.dtype, "shape": t.shape, "bounds": t.bounds} for t in specs]

    return {
        "inputs": tensors(spec.inputs),
        "outputs": tensors(spec.outputs),
        "largest": spec.batch.largest if spec.batch else 0,
    }


def spec_from_json(message: Mapping[str, Any], chunk: int) -> ModelSpec:
    """The model as an instance sees it: every batch up to the largest runs, handed over in parts.

    Args:
        message: Of spec_to_json.
        chunk: The most items of a part.
    """
    largest = int(message["largest"])
    batch = BatchSizes((largest,), exact=True, best=min(chunk, largest)) if largest else None
    return ModelSpec(_tensors(message["inputs"]), _tensors(message["outputs"]), batch)


def _tensors(entries: list[Message]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            str(e["name"]),
            str(e["dtype"]),
            tuple(map(int, e["shape"])),
            tuple((tuple(map(int, low)), tuple(map(int, high))) for low, high in e["bounds"]),
        )
        for e in entries
    )
