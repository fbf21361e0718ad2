"""A machine on which no server starts, by what is mounted where: `pinstream doctor` and `serve` both say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.test_full_machine import in_a_namespace
from tests.unit.cli.test_doctor import free_ports

READ_ONLY = "mount --bind {place} {place} && mount -o remount,bind,ro {place}"
# With all of /dev but /dev/shm.
NO_SHM = (
    "mkdir {dir}/dev && mount --bind /dev {dir}/dev && mount -t tmpfs tmpfs /dev && "
    "for each in null zero full urandom; do touch /dev/$each && mount --bind {dir}/dev/$each /dev/$each; done"
)


@pytest.mark.parametrize(
    ("mounts", "name", "words", "remedy"),
    [
        (READ_ONLY.replace("{place}", "/dev/shm"), "/dev/shm", "/dev/shm cannot be written to", "mount a tmpfs there"),
        (NO_SHM, "/dev/shm", "/dev/shm is not there", "mount a tmpfs there"),
        ("mount -t tmpfs -o noexec tmpfs {dir}/tmp", "temporary files", "{dir}/tmp is mounted noexec", "set TMPDIR"),
        (
            "for place in {dir} /tmp /var/tmp; do " + READ_ONLY.replace("{place}", "$place") + " || exit 77; done",
            "temporary files",
            "there is no directory for temporary files that this user may write to",
            "set TMPDIR to one",
        ),
    ],
    ids=["shm read-only", "no shm", "noexec", "no temporary files"],
)
def test_what_keeps_every_server_from_starting_is_told(
    classifier: Path, tmp_path: Path, mounts: str, name: str, words: str, remedy: str
) -> None:
    (tmp_path / "tmp").mkdir()
    command = f"TMPDIR={tmp_path}/tmp {sys.executable} -m pinstream_cli"
    ports, path = " ".join(free_ports()), ":".join(filter(None, sys.path))
    said = in_a_namespace(
        f"{{ {mounts.format(dir=tmp_path)}; }} || exit 77; cd /proc; export PYTHONPATH={path}; "
        f"{command} doctor --json {ports}; echo doctor ended with $?; "
        f"{command} serve --model {classifier} {ports} 2>&1; echo serve ended with $?"
    )
    report, _, served = said.partition("doctor ended with 1\n")
    (check,) = (check for check in json.loads(report)["checks"] if check["name"] == name)
    assert check["status"] == "FIX"
    assert check["found"].startswith(words.format(dir=tmp_path))
    assert check["remedy"].startswith(remedy)
    assert served == f"error: {check['found']}; {check['remedy']}\nserve ended with 2\n"


@pytest.mark.parametrize("name", ["sp ace", "q$(touch PWNED)", "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
def test_temporary_files_where_a_shell_would_read_their_name_are_told(
    classifier: Path, tmp_path: Path, name: str
) -> None:
    """Triton's Python backend gives their paths to one: it waited for good, or the command was run."""
    place = tmp_path / name
    place.mkdir()

    def run(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        called = [sys.executable, "-m", "pinstream_cli", command, *free_ports(), *map(str, arguments)]
        env = {**os.environ, "TMPDIR": str(place)}
        return subprocess.run(called, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)

    doctor = run("doctor", "--json")
    (check,) = (check for check in json.loads(doctor.stdout)["checks"] if check["name"] == "temporary files")
    assert (doctor.returncode, check["status"]) == (1, "FIX")
    assert check["found"].startswith(f"temporary files go to {str(place)!r}, and")
    assert check["remedy"].startswith("set TMPDIR to a directory")
    serve = run("serve", "--model", classifier)
    assert (serve.returncode, serve.stderr) == (2, f"error: {check['found']}; {check['remedy']}\n")
    assert not list(tmp_path.rglob("PWNED"))
