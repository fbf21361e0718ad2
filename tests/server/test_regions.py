"""The regions of /dev/shm through which Triton talks to the processes of models: what they are called."""

from __future__ import annotations

from pathlib import Path

from tests.server.running import running


def regions_of(pid: int) -> set[Path]:
    """What a process has mapped of /dev/shm."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path("/dev/shm") / line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}


def test_they_have_the_names_that_later_tritons_open_for_no_client(classifier: Path) -> None:
    with running(classifier) as server:
        found = regions_of(server.server.pid)
        assert found
        for region in found:
            assert region.name.startswith("triton_python_backend_shm_region_"), region
            assert region.name.startswith(server.server.shm_prefix), "else nobody clears it away"
