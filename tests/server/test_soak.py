"""The short form of the soak: versions come, go and are broken under load."""

from __future__ import annotations

import pytest

from tests.soak import MODES, soak


@pytest.mark.parametrize("mode", MODES)
def test_no_request_is_lost_and_no_answer_wrong_while_versions_change(mode: str) -> None:
    report = soak(seconds=10, every_s=1, mode=mode)
    assert report["faults"] == []
    assert report["reloads"] >= 1
    assert report["broken_versions_refused"] >= 1
    assert len(report["requests_by_version"]) >= 2
