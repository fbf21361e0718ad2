"""Every script of benchmarks starts the one way that its page names, and its result says of which script it is."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.outcome import about, write

ROOT = Path(__file__).parents[2]
# What needs PyTorch, what runs a command, and what is no script.
OTHERS = {"limits", "awake", "__init__", "arrivals", "outcome"}
RUN_GPU = ROOT / "benchmarks" / "run_gpu.sh"
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


def test_what_run_gpu_takes_from_the_environment_stands_at_its_top() -> None:
    header, rest = RUN_GPU.read_text().split("set -uo pipefail")
    ours = set(re.findall(r"\$\{([A-Z_]+):?-", rest))
    assert sorted(ours - set(re.findall(r"\b[A-Z_]+\b", header))) == ["XDG_CACHE_HOME"]
    assert max(map(len, rest.splitlines())) <= 120


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="needs a machine without a GPU")
def test_run_gpu_says_what_is_lacking_before_it_builds_anything(tmp_path: Path) -> None:
    places = {"WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    done = subprocess.run([RUN_GPU], env=os.environ | places, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Nothing can be measured here. There is lacking:\n  an NVIDIA GPU: nvidia-smi -L finds none\n" in done.stdout
    assert not any(tmp_path.iterdir())


def test_the_parts_of_run_gpu_fit_into_its_time(tmp_path: Path) -> None:
    """Each with all the time that it may take: none of them is left out for want of time."""
    script = RUN_GPU.read_text()
    head, _, _ = script.partition("\nleft() ")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "head.sh").write_text(f'{head}\necho "$LIMIT" "${{most[@]}}"\n')
    unset = {name: value for name, value in os.environ.items() if not name.endswith("LIMIT")}
    command = ["bash", str(tmp_path / "benchmarks" / "head.sh")]
    told = subprocess.run(command, env=unset, capture_output=True, text=True, timeout=60, check=True).stdout
    limit, *parts = map(int, told.split())
    assert sum(parts) < limit < 1.02 * sum(parts)
    assert f"may take together, {limit} with all of them" in script
    fewer = subprocess.run(command, env=unset | {"PARTS": "limits"}, capture_output=True, text=True, timeout=60)
    assert int(fewer.stdout.split()[0]) == 385


def test_run_gpu_packs_nothing_of_a_run_before_as_its_own(tmp_path: Path) -> None:
    """Whether a part then fails, is left out, or is never come to."""
    begins = re.search(r"^forget\(\).*?^forget [^\n]*$", RUN_GPU.read_text(), re.MULTILINE | re.DOTALL)
    assert begins
    kept = [tmp_path / "compare.json", tmp_path / "logs" / "compare.log"]
    old = ["limits.json", "latency-awake.json", "timeline/timeline.json", "plots/latency/a.svg", "raw/latency/1.csv"]
    for file in (*kept, *(tmp_path / name for name in (*old, "logs/limits.log", "raw.tar.gz"))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    given = {"GPU": str(tmp_path), "PARTS": "limits timeline latency"}
    subprocess.run(["bash", "-c", begins[0]], env=os.environ | given, timeout=60, check=True)
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)
