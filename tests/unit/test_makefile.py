"""`make setup` refuses a Python that is none of the supported ones; `make test-gpu` runs both of its halves.

CI leaves the tests of training out only where nothing that they test has changed, and tries again what failed for time.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", ["3.9.18", "3.13.0"])
def test_another_python_is_refused_before_anything_is_made(tmp_path: Path, version: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    python = tmp_path / "python3"
    parts = tuple(map(int, version.split(".")))
    pretend = f"import sys; sys.version_info = {parts}; sys.version = {version + ' (main)'!r}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    said = done.stderr.splitlines()[0]
    assert said == (
        f"error: {python} is Python {version}, and pinstream needs 3.10 to 3.12; "
        "name one of these, as in: make setup PYTHON=python3.12"
    )
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("failing", ["", "not exact", "exact"])
def test_both_halves_of_the_gpu_tests_run_and_either_may_fail(tmp_path: Path, failing: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    (tmp_path / "python3").write_text(f'#!/bin/sh\necho "ran: $5"\ntest "$5" != "{failing}"\n')
    (tmp_path / "python3").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "-C", str(ROOT), "--no-print-directory", "test-gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout.splitlines() == ["ran: not exact", "ran: exact"]
    assert bool(done.returncode) == bool(failing)


TRAINS = ("training/yolox.py", "tests/unit/training/test_yolox.py", "cli/pinstream_cli/yolox_recognise.py", "Makefile")


@pytest.mark.parametrize("changed", [*TRAINS, "requirements.lock", "training"])
def test_training_is_tested_again_where_it_is_other_than_when_it_passed(tmp_path: Path, changed: str) -> None:
    for name in (*TRAINS, "requirements.lock", "cli/pinstream_cli/main.py", ".ci/training"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def training(word: str) -> int:
        return subprocess.run([tmp_path / ".ci" / "training", word], capture_output=True, check=False).returncode

    assert training("else") == 2
    assert training("unchanged") == 1, "nothing is known of a last time"
    assert training("passed") == 0
    assert training("unchanged") == 0
    (tmp_path / "cli" / "pinstream_cli" / "main.py").write_text("")
    assert training("unchanged") == 0
    if changed == "training":
        shutil.rmtree(tmp_path / changed)
    else:
        (tmp_path / changed).write_text("other")
    assert training("unchanged") != 0


@pytest.mark.parametrize(("name", "tried_again"), [("test_shared_races", False), ("test_other", True)])
def test_what_failed_is_tried_again_unless_it_is_a_race(tmp_path: Path, name: str, tried_again: bool) -> None:
    again, test, here = tmp_path / ".ci" / "again", tmp_path / f"{name}.py", tmp_path / "here"
    again.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "again", again)
    test.write_text(f"import os\n\n\ndef test_it():\n    assert os.path.exists({str(here)!r})\n")
    first = subprocess.run([sys.executable, "-m", "pytest", "-q", test], cwd=tmp_path, capture_output=True, check=False)
    assert first.returncode == 1
    here.touch()
    done = subprocess.run([again, sys.executable], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == tried_again, done.stdout
    assert ("1 passed" in done.stdout) == tried_again
