"""The short form of the soak: versions come, go and are broken under load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests import soak as soaks
from tests.soak import RUNS, soak
from tests.soak_measure import growth
from tests.soak_subjects import Classifier, Subject


@pytest.mark.parametrize("run", RUNS)
def test_no_request_is_lost_and_no_answer_wrong_while_versions_change(run: str) -> None:
    # A round of the service loads five processes anew, beside other tests in ten seconds.
    report = soak(24 if run.startswith("service") else 8, 0.5, *RUNS[run], pause_s=0.02)
    assert report["faults"] == []
    assert report["reloads"] >= 1
    assert report["broken_versions_refused"] >= 1
    assert len(report["requests_by_version"]) >= 2


def test_a_broken_version_that_is_called_ready_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def not_broken(subject: Subject) -> Iterator[None]:
        subject.add()
        yield

    monkeypatch.setattr(Classifier, "broken", not_broken)
    # Of the version before, which is asked for no more.
    monkeypatch.setattr(soaks, "PATIENCE_S", 3.0)
    report = soak(8, 0.5, "classifier", "poll", pause_s=0.02)
    assert "a broken version 3 is called ready" in report["faults"]
    assert report["broken_versions_refused"] == 0


def test_what_grows_by_more_than_it_may_is_a_fault() -> None:
    samples = [{"resident_mib": 40.0 + 0.1 * i, "files": 67.0, "shm_mib": 1.0 + 0.1 * i} for i in range(50)]
    assert growth(samples, per_version=0.2) == ["shm_mib grows: 1.55 at first, 5.35 at last"]
    # One file that is left open by every tenth version.
    leaking = [{**sample, "shm_mib": 1.0, "files": 67.0 + i // 10} for i, sample in enumerate(samples)]
    assert growth(leaking, per_version=0.2) == ["files grows: 67.0 at first, 71.0 at last"]
    faster = [{**sample, "resident_mib": 40.0 + 0.4 * i} for i, sample in enumerate(samples)]
    assert any("resident_mib" in fault for fault in growth(faster, per_version=0.2))
    # More than malloc's arenas come to is no arenas' any more, however many versions there were.
    slowly = [{"resident_mib": 400.0 + 2.4 * i} for i in range(50)]
    assert growth(slowly, per_version=5.0) == ["resident_mib grows: 413.2 at first, 504.4 at last"]
    # A context of the GPU is gigabytes: what grows there by fifty MiB is far from a share of it.
    on_gpu = [{"gpu_mib": 3151.0 + i} for i in range(50)]
    assert growth(on_gpu, per_version=5.0) == ["gpu_mib grows: 3151.0 at first, 3189.0 at last"]
