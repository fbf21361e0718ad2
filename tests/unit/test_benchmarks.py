"""Every script of benchmarks starts the one way that its page names, and its result says of which script it is."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.outcome import about, write

ROOT = Path(__file__).parents[2]
# What needs PyTorch, what runs a command, and what is no script.
OTHERS = {"limits", "awake", "__init__", "arrivals", "outcome"}
SCRIPTS = sorted({file.stem for file in (ROOT / "benchmarks").glob("*.py")} - OTHERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # As `python -m` does it, but for the process: what they import takes seconds each time.
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_cores_are_awake_while_a_command_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.awake", "false"], cwd=ROOT, timeout=60)
    assert done.returncode == 1


def test_a_result_says_of_which_script_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "queue_full.py"), "--out", str(out)])
    write({**about(), "rows": [{"sent_per_s": 46.2, "batch": 8, "name": "limited"}]}, out)
    found = json.loads(out.read_text())
    assert (found["suite"], found["command"]) == ("queue-full", "python -m benchmarks.queue_full --out result.json")
    assert found["machine"]["cores"] >= 1
    (row,) = found["rows"]
    assert (row.pop("name"), row.pop("batch"), row.pop("sent_per_s")) == ("limited", 8, 46.2)
    assert row == dict.fromkeys(["concurrency", "images_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "spread"])
