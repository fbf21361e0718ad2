"""`pinstream doctor --fix`: what is nobody's any more goes, and what is somebody's stays. The locks are real."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.remains import check_leftovers
from pinstream_cli.triton import leftovers
from pinstream_client import regions


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/shm, which every test's server clears of what is nobody's."""
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(regions, "DIRECTORY", tmp_path)
    return tmp_path


def found(*, fix: bool) -> dict[str, Check]:
    return {check.name: check for check in check_leftovers(fix=fix)}


def server_region(shm: Path, prefix: str) -> Path:
    path = shm / f"{prefix}region"
    path.write_bytes(bytes(1000))
    return path


def test_regions_of_a_server_are_its_own_until_its_lock_is_open(shm: Path) -> None:
    # Of a process that is not seen from here, as from another container that shares /dev/shm.
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    prefix = leftovers.shm_prefix(gone.pid, "pinstream-a_b_c_d_")
    lock = leftovers.hold_regions(prefix)
    region, unmarked = server_region(shm, prefix), server_region(shm, f"pinstream_{gone.pid}_unlocked_")
    unnamed = server_region(shm, f".{prefix}")  # by whoever was killed before it gave it its name
    assert str(region) not in found(fix=True)
    assert region.exists()
    os.close(lock)
    assert found(fix=False)[str(region)].status == "WARN"
    assert region.exists()
    fixed = found(fix=True)
    assert fixed[str(region)].found == fixed[str(unnamed)].found == "removed"
    assert list(shm.iterdir()) == [unmarked], "nothing tells whose that is"


def test_a_lock_that_somebody_has_made_before_is_not_taken_for_ones_own(shm: Path) -> None:
    prefix = leftovers.shm_prefix(os.getpid(), "pinstream-abcdefgh")
    (shm / f".{prefix}{leftovers.LOCK_NAME}").symlink_to(shm / "elsewhere")
    with pytest.raises(FileExistsError):
        leftovers.hold_regions(prefix)
    assert not (shm / "elsewhere").exists()


def test_a_stop_removes_regions_that_had_no_name_yet(shm: Path) -> None:
    prefix = leftovers.shm_prefix(os.getpid(), "pinstream-abcdefgh")
    os.close(leftovers.hold_regions(prefix))
    server_region(shm, prefix), server_region(shm, f".{prefix}")
    leftovers.remove_regions(prefix)
    assert list(shm.iterdir()) == []


def test_regions_from_before_triton_reserved_their_name_are_found(shm: Path) -> None:
    before = leftovers.shm_prefix(os.getpid(), "pinstream-abcdefgh").removeprefix(leftovers.RESERVED)
    os.close(leftovers.hold_regions(before))
    region, tritons = server_region(shm, before), server_region(shm, f"{leftovers.RESERVED}of-somebody-elses-triton_")
    assert found(fix=True)[str(region)].found == "removed"
    assert list(shm.iterdir()) == [tritons]


def test_a_process_that_has_inherited_the_lock_keeps_the_regions(shm: Path) -> None:
    prefix = leftovers.shm_prefix(os.getpid(), "pinstream-abcdefgh")
    lock = leftovers.hold_regions(prefix)
    region = server_region(shm, prefix)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]) as child:
        os.close(lock)
        assert str(region) not in found(fix=True)
        child.communicate(b"\n")
    assert found(fix=True)[str(region)].found == "removed"


KILLED = """
import os, sys
from pathlib import Path
from pinstream_client import regions
regions.DIRECTORY = Path(sys.argv[1])
print(regions.SystemRegion(64).name, flush=True)
os.kill(os.getpid(), 9)
"""


def killed_clients_region(shm: Path) -> Path:
    done = subprocess.run([sys.executable, "-c", KILLED, str(shm)], stdout=subprocess.PIPE, text=True)
    return shm / done.stdout.strip()


def test_a_region_of_a_killed_client_goes_unless_a_server_still_has_it(shm: Path) -> None:
    dead, registered = killed_clients_region(shm), killed_clients_region(shm)
    living = regions.SystemRegion(64)
    with registered.open("r+b") as file, mmap.mmap(file.fileno(), 64):
        assert found(fix=False)[str(dead)].status == "WARN"
        assert found(fix=True)[str(dead)].found == "removed"
        assert not dead.exists()
        assert registered.exists(), "the next client has the server forget it"
    assert found(fix=True)[str(registered)].found == "removed"
    assert (shm / living.name).exists()
    living.remove()
