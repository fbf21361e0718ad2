"""perf_analyzer: what it is called with, what it leaves, and that none of its failures goes unnoticed."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pinstream_cli.benchmark import install
from pinstream_cli.benchmark.install import Tool, find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load, parse, regions, run, sample
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
SHARED = replace(LOAD, shared_memory=True, output_bytes=7200)


# A row of one request fewer, which is not what was asked for, comes with the other.
REPORT = CSV.read_text() + "1,80.5,1,1,1,1,1,1,1,2,3,4,5\n"
REPORTING = f"""
        import sys, pathlib
        print("Pass [1] throughput: 46 infer/sec.")
        pathlib.Path(sys.argv[sys.argv.index("-f") + 1]).write_text({REPORT!r})
"""


def program(tmp_path: Path, body: str) -> Tool:
    """A stand-in for the binary, to see how its ways of failing are told; the real one is run by tests/server."""
    path = tmp_path / "perf_analyzer.py"
    path.write_text(textwrap.dedent(body))
    return Tool((sys.executable, str(path)), "0")


def test_a_real_csv() -> None:
    measured = sample(parse(REPORT, LOAD), 3.0)
    assert (measured.images_per_s, measured.p50_ms, measured.p99_ms) == (46.5454, 310.913, 789.232)
    assert measured.seconds == 3.0
    assert measured.details["Server Queue"] == "88901"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", CSV.read_text() + "2,1,1,1,1,1,1,1,1,1,1,1,1\n"])
def test_another_csv_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match=r"rows for concurrency 2 of .*; expected one row with Inferences/Second"):
        parse(text, LOAD)


def test_arguments() -> None:
    words = " ".join(LOAD.arguments())
    assert words == ("-m detector -i grpc -u 127.0.0.1:8001 -b 8 --concurrency-range 1:2:1 --input-data input.json")


def test_one_request_at_a_time_has_no_load_that_builds_up() -> None:
    assert "--concurrency-range 1 --input-data" in " ".join(replace(LOAD, concurrency=1).arguments())


@pytest.mark.parametrize(("rate", "threads"), [(1960.25, 256), (100.0, 50), (10.0, 16)])
def test_requests_at_random_times_have_threads_for_half_a_second_of_them(rate: float, threads: int) -> None:
    words = " ".join(replace(LOAD, rate=rate).arguments())
    assert f"--request-rate-range {rate:.1f} --request-distribution poisson --max-threads {threads}" in words
    assert "--concurrency-range" not in words


def test_stages_are_milliseconds() -> None:
    stages = sample(parse(REPORT, LOAD), 1.0).stages_ms
    assert stages["queue"] == pytest.approx(88.901)
    assert list(stages)[:2] == ["send", "network"]


def test_shared_memory_arguments_have_room_for_the_outputs() -> None:
    assert SHARED.arguments()[-4:] == ["--shared-memory", "system", "--output-shared-memory-size", "7200"]


def test_run_reads_the_report(tmp_path: Path) -> None:
    checked = 'assert "-v" in sys.argv and float(sys.argv[sys.argv.index("-p") + 1]) == 500'
    tool = program(tmp_path, f"{REPORTING}        {checked}\n")
    kept = tmp_path / "raw" / "run.csv"
    found = run(tool, LOAD, 3.0, kept)
    assert (found.images_per_s, found.details["Concurrency"]) == (46.5454, "2")
    assert kept.read_text() == REPORT
    assert "Pass [1]" in kept.with_suffix(".log").read_text()


def test_a_run_of_less_than_three_latencies_is_made_longer(tmp_path: Path) -> None:
    # 2 requests of 8 under way at 46.5 a second: 0.344 s each.
    tool, kept = program(tmp_path, REPORTING), tmp_path / "run.csv"
    assert run(tool, LOAD, 0.3, kept).seconds == pytest.approx(3.3 * 16 / 46.5454)
    assert (tmp_path / "run-too-short-1.log").is_file()
    # Where they come one at a time, or at random times, nothing builds up.
    assert run(program(tmp_path, REPORTING), replace(LOAD, concurrency=1), 0.3).seconds == 0.3


def test_no_run_is_made_longer_than_there_is_time(tmp_path: Path) -> None:
    assert run(program(tmp_path, REPORTING), LOAD, 0.3, ends=time.monotonic() + 1).seconds == 0.3


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
    assert run(tool, LOAD, 6.0).details["Concurrency"] == "2"
    with pytest.raises(CommandError, match=r"No valid requests .*longer --window"):
        run(tool, LOAD, 0.5)


def test_a_run_in_which_nothing_is_answered_any_more_is_made_longer(tmp_path: Path) -> None:
    stuck = REPORT.replace("46.5454", "0")
    tool = program(
        tmp_path,
        f"""
        import pathlib, sys
        short = float(sys.argv[sys.argv.index("-p") + 1]) < 1000
        pathlib.Path(sys.argv[sys.argv.index("-f") + 1]).write_text({stuck!r} if short else {REPORT!r})
        """,
    )
    found = run(tool, LOAD, 3.0)
    assert (found.images_per_s, found.seconds) == (46.5454, 9.0)
    with pytest.raises(CommandError, match=r"no answer came in its last windows; lengthen --window"):
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
