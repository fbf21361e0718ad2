"""The short form of the soak: versions come, go and are broken under load."""

from __future__ import annotations

from tests.soak import soak


def test_no_request_is_lost_and_no_answer_wrong_while_versions_change() -> None:
    report = soak(seconds=7, every_s=1)
    assert report["faults"] == []
    assert report["reloads"] >= 2
    assert report["broken_versions_refused"] >= 1
    assert len(report["requests_by_version"]) >= 2
