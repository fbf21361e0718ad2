"""perf_analyzer: what it is called with, what it leaves, and that none of its failures goes unnoticed."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from pinstream_cli.benchmark import install
from pinstream_cli.benchmark.install import Tool, find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load, parse, regions, run, sample, steady_rate
from pinstream_cli.errors import CommandError

CSV = Path(__file__).parents[2] / "data" / "perf_analyzer.csv"
LOAD = Load(
    model="detector",
    batch=8,
    concurrency=2,
    input_data=Path("input.json"),
    inputs=("images",),
    outputs=("candidates",),
    url="127.0.0.1:8001",
)
PASSES = """
  Pass [1] throughput: 32.1 infer/sec. Avg latency: 465818 usec (std 97080 usec).
  Pass [2] throughput: 41 infer/sec. Avg latency: 422622 usec (std 3639 usec).
  Pass [3] throughput: 43.5 infer/sec. Avg latency: 432175 usec (std 27144 usec).
"""
SHARED = replace(LOAD, shared_memory=True, output_bytes=7200)


REPORTING = f"""
        import shutil, sys
        print({PASSES!r})
        shutil.copy({str(CSV)!r}, sys.argv[sys.argv.index("-f") + 1])
"""


def program(tmp_path: Path, body: str) -> Tool:
    """A stand-in for the binary, to see how its ways of failing are told; the real one is run by tests/server."""
    path = tmp_path / "perf_analyzer.py"
    path.write_text(textwrap.dedent(body))
    return Tool((sys.executable, str(path)), "0")


def test_a_real_csv() -> None:
    row = parse(CSV.read_text())
    measured = sample(row, 45.0)
    assert measured.images_per_s == 45.0
    assert (measured.p50_ms, measured.p99_ms) == (310.913, 789.232)
    assert measured.details["Server Queue"] == "88901"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", CSV.read_text() + "4,1,1,1,1,1,1,1,1,1,1,1,1\n"])
def test_another_csv_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="expected one row with Inferences/Second"):
        parse(text)


def test_arguments() -> None:
    words = " ".join(LOAD.arguments())
    assert words == ("-m detector -i grpc -u 127.0.0.1:8001 -b 8 --concurrency-range 2 --input-data input.json")


def test_requests_at_random_times() -> None:
    words = " ".join(replace(LOAD, rate=1960.25).arguments())
    assert "--request-rate-range 1960.2 --request-distribution poisson --max-threads 256" in words
    assert "--concurrency-range" not in words


def test_stages_are_milliseconds() -> None:
    stages = sample(parse(CSV.read_text()), 1.0).stages_ms
    assert stages["queue"] == pytest.approx(88.901)
    assert list(stages)[:2] == ["send", "network"]


def test_shared_memory_arguments_have_room_for_the_outputs() -> None:
    assert SHARED.arguments()[-4:] == ["--shared-memory", "system", "--output-shared-memory-size", "7200"]


def test_what_comes_while_the_load_builds_up_does_not_count() -> None:
    assert steady_rate(PASSES) == 42.25


@pytest.mark.parametrize("output", ["", PASSES + PASSES])
def test_other_windows_are_refused(output: str) -> None:
    with pytest.raises(CommandError, match=r"told the throughput of [06] windows; expected 3 lines"):
        steady_rate(output)


def test_run_reads_report_and_windows(tmp_path: Path) -> None:
    checked = 'assert "-v" in sys.argv and float(sys.argv[sys.argv.index("-p") + 1]) == 1000'
    tool = program(tmp_path, f"{REPORTING}        {checked}\n")
    kept = tmp_path / "raw" / "run.csv"
    found = run(tool, LOAD, 3.0, kept)
    assert (found.images_per_s, found.details["Concurrency"]) == (42.25, "2")
    assert kept.read_text() == CSV.read_text()
    assert "Pass [2]" in kept.with_suffix(".log").read_text()


def test_a_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    tool = program(
        tmp_path,
        """
        import sys
        print("*** Measurement Settings ***")
        print("Thread [0] had error: inference request batch-size must be <= 4 for 'detector'", file=sys.stderr)
        sys.exit(99)
        """,
    )
    with pytest.raises(CommandError, match=r"code 99 \(model detector, batch 8, concurrency 2 .*must be <= 4"):
        run(tool, LOAD, 1.0)


def test_a_window_too_short_for_a_request_is_made_longer(tmp_path: Path) -> None:
    tool = program(
        tmp_path,
        f"""
        import sys
        if float(sys.argv[sys.argv.index("-p") + 1]) < 2000:
            sys.exit("No valid requests recorded within time interval. Please use a larger time window.")
        {REPORTING.strip()}
        """,
    )
    assert run(tool, LOAD, 3.0).details["Concurrency"] == "2"
    with pytest.raises(CommandError, match=r"No valid requests .*longer --window"):
        run(tool, LOAD, 0.5)


def test_windows_in_which_nothing_is_answered_any_more_are_made_longer(tmp_path: Path) -> None:
    stuck = PASSES.replace("41 infer", "0 infer").replace("43.5 infer", "0 infer")
    tool = program(
        tmp_path,
        f"""
        import shutil, sys
        print({stuck!r} if float(sys.argv[sys.argv.index("-p") + 1]) < 2000 else {PASSES!r})
        shutil.copy({str(CSV)!r}, sys.argv[sys.argv.index("-f") + 1])
        """,
    )
    assert run(tool, LOAD, 3.0).images_per_s == 42.25
    with pytest.raises(CommandError, match=r"no answer came after its first window; lengthen --window"):
        run(tool, LOAD, 0.5)


def test_success_without_a_report_is_a_failure(tmp_path: Path) -> None:
    tool = program(tmp_path, "print('Failed to obtain stable measurement.')")
    with pytest.raises(CommandError, match=r"code 0 .*stable measurement.*longer --window"):
        run(tool, LOAD, 1.0)


def test_shared_memory_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream_cli.benchmark.perf_analyzer.SHARED_MEMORY", tmp_path)
    assert regions(LOAD) == regions(SHARED) == []
    (tmp_path / "images_0_0").touch()
    (tmp_path / "images_of_somebody").touch()
    (tmp_path / "candidates").touch()
    assert regions(SHARED) == [tmp_path / "images_0_0", tmp_path / "candidates"]
    with pytest.raises(CommandError, match="another perf_analyzer"):
        run(Tool(("false",), "0"), SHARED, 1.0)


def test_what_a_killed_run_leaves_in_shared_memory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    monkeypatch.setattr("pinstream_cli.benchmark.perf_analyzer.SHARED_MEMORY", shm)
    killed = f"""
        import os, pathlib, signal
        pathlib.Path({str(shm)!r}, "images_0_0").touch()
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with pytest.raises(CommandError, match="code -9"):
        run(program(tmp_path, killed), SHARED, 1.0)
    assert list(shm.iterdir()) == []


def test_the_environment_names_a_command_with_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program(tmp_path, "import sys; print('Perf Analyzer Version 2.51.0 (commit unknown)', file=sys.stderr)")
    monkeypatch.setenv("PERF_ANALYZER", f"env SOME=1 {' '.join(tool.command)}")
    found = find_perf_analyzer(pytest.fail)
    assert found == Tool(("env", "SOME=1", *tool.command), "2.51.0")


def test_a_named_command_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_ANALYZER", "/no/such/perf_analyzer")
    with pytest.raises(CommandError, match=r"PERF_ANALYZER=/no/such/perf_analyzer .*No such file"):
        find_perf_analyzer(pytest.fail)


def test_pip_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERF_ANALYZER", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(install, "LIBRARIES", {})
    notices: list[str] = []
    with pytest.raises(CommandError, match=r"could not be fetched with pip: .*PERF_ANALYZER"):
        find_perf_analyzer(notices.append)
    assert len(notices) == 1
    assert list((tmp_path / "pinstream" / "perf_analyzer").iterdir()) == []
