"""What tritonserver writes as it crashes, and what it only looks like."""

from __future__ import annotations

import pytest

from pinstream_cli.triton.server import CRASHED


@pytest.mark.parametrize(
    ("line", "signal"),
    [
        ("Signal (11) received.", "11"),
        ("Signal (6) received.", "6"),
        # Two threads at once.
        ("Signal (Signal (1111) received.", "11"),
        ("Signal (15) received.", None),
        ("Signal (2) received.", None),
        ('E1126 13:45:27.0 1 model.py:1] "Signal (11) received."', None),
    ],
)
def test_a_crash_is_told_from_a_stop_and_from_what_clients_write(line: str, signal: str | None) -> None:
    found = CRASHED.search(line)
    assert (found[1] if found else None) == signal
