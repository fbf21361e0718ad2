"""What becomes of regions that a server does not forget in time."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from pinstream_client.address import parse_url
from pinstream_client.cluster import Cluster
from pinstream_client.errors import DeadlineExceeded, PinstreamError, ServerUnreachable
from pinstream_client.options import Options
from pinstream_client.retry import Retry
from pinstream_client.shared_memory import SharedMemory


class NotedRegion:
    """A region that one server knows, and that notes how it was removed."""

    def __init__(self, nbytes: int) -> None:
        self.name = "noted"
        self.host = np.zeros(nbytes, np.uint8)
        self.known_to = {0}
        self.removed: list[bool] = []

    def publish(self, nbytes: int) -> None: ...

    def register(self, transport: Any, timeout: float) -> None: ...

    def unregister(self, transport: Any, timeout: float) -> None: ...

    def abandon(self) -> None: ...

    def remove(self, forgotten: bool = True) -> None:
        self.removed.append(forgotten)


@pytest.mark.parametrize(
    ("answer", "forgotten"),
    [(None, True), (DeadlineExceeded("too busy"), False), (ServerUnreachable("gone, and all it knew"), True)],
)
def test_what_a_busy_server_still_knows_is_left_to_the_next_client(
    answer: PinstreamError | None, forgotten: bool
) -> None:
    made: list[NotedRegion] = []

    def make(nbytes: int) -> NotedRegion:
        made.append(NotedRegion(nbytes))
        return made[-1]

    memory = SharedMemory(Cluster([parse_url("localhost:8001")], Retry()), Options(), make)
    for size in (8, 16):
        assert memory.take(size) is not None
    steps = memory.close()
    with contextlib.suppress(StopIteration):
        next(steps)
        while True:
            steps.throw(answer) if answer else next(steps)
    assert [region.removed for region in made] == [[forgotten]] * 2
