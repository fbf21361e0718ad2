"""Which perf_analyzer it is that measures, where it does not tell its version."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from pinstream_cli.benchmark.install import find_perf_analyzer


def test_a_build_without_a_version_has_that_of_its_wheel_or_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "perf_analyzer"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho 'Perf Analyzer Version  (commit 1a2b3c4d)'\n")
    binary.chmod(0o755)
    digest = hashlib.sha256(binary.read_bytes()).digest()
    monkeypatch.setenv("PERF_ANALYZER", f"env SOME=1 {binary}")
    assert find_perf_analyzer(pytest.fail).version == f"sha256:{digest.hex()[:12]}"
    wheel = tmp_path / "lib" / "python3.11" / "site-packages" / "perf_analyzer-2.59.1.dist-info"
    wheel.mkdir(parents=True)
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: perf-analyzer\nVersion: 2.59.1\n")
    hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    (wheel / "RECORD").write_text(f"../../../bin/perf_analyzer,sha256={hashed},99\n")
    assert find_perf_analyzer(pytest.fail).version == "2.59.1"
    binary.write_text(binary.read_text() + "# another\n")
    assert find_perf_analyzer(pytest.fail).version.startswith("sha256:")
