"""`pinstream tune` as a whole: a real tritonserver, the real perf_analyzer, a small model, short windows."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark.alone import alone
from pinstream_cli.benchmark.install import Tool, find_perf_analyzer
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main
from pinstream_cli.tuning.model import find
from pinstream_cli.tuning.server import Requests, bench
from pinstream_cli.tuning.settings import AS_CONFIGURED, Settings
from tests import onnx_models
from tests.server.running import running


@pytest.fixture(scope="module", autouse=True)
def _perf_analyzer() -> None:
    try:
        find_perf_analyzer(print)
    except CommandError as error:
        pytest.skip(str(error))


def test_it_writes_a_configuration_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every load takes seconds; all that is tried otherwise is in the unit tests.
    monkeypatch.setattr("pinstream_cli.tune.steps", lambda *spec, **configured: [[{"delay_us": 0}, {"slots": 0}]])
    monkeypatch.setattr("pinstream_cli.tuning.final.FINAL_WINDOWS", 1)
    version = tmp_path / "models" / "classifier" / "1"
    onnx_models.classifier(version / "model.onnx")
    # A queue delay that no concurrency of 1 ever fills: anything less is better beyond any spread.
    config = 'backend: "pinstream"\ndynamic_batching { max_queue_delay_microseconds: 50000 }\n'
    (version.parent / "config.pbtxt").write_text(config)
    arguments = ["--concurrency", "1", "--window", "0.3", "--foreign", "1", "--out", str(tmp_path / "config.pbtxt")]
    done = CliRunner().invoke(main, ["tune", str(version.parent), *arguments])
    assert done.exit_code == 0, done.output
    assert re.search(r"queue delay us 0 .+ chosen", done.output)
    # The server's own reason why one of them cannot be.
    assert "does not load" in done.output
    written = (tmp_path / "config.pbtxt").read_text()
    assert written.startswith("# Tuned by `pinstream tune`")
    assert "50000" not in written
    (version.parent / "config.pbtxt").write_text(written)
    with running(repositories=[tmp_path / "models"]) as server:
        assert "classifier" in server.server.loads.models


def test_whoever_stops_it_sees_what_it_tried_and_finds_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(changes: object, *more: object) -> None:
        raise KeyboardInterrupt

    # After the configuration as it is, at the first of those that are tried.
    monkeypatch.setattr("pinstream_cli.tuning.search.with_changes", stopped)
    model, out = onnx_models.classifier(tmp_path / "classifier.onnx"), tmp_path / "config.pbtxt"
    arguments = ["--concurrency", "1", "--window", "0.3", "--foreign", "1", "--out", str(out)]
    done = CliRunner().invoke(main, ["tune", str(model), *arguments])
    assert done.exit_code == 130, done.output
    assert re.search(r"as configured +1( +[\d.]+){3} +[23] *$", done.stdout, re.MULTILINE)
    assert "none of them is chosen, and nothing is written" in done.stdout
    assert "Stopped." in done.stderr
    assert not out.exists()


def test_a_model_is_warm_before_it_is_measured_and_a_disturbed_window_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstream_cli.tuning.server.DISTURBED_IN_A_ROW", 2)
    told: list[str] = []
    # No window is as quiet as that.
    plan = Plan(window_s=0.3, foreign_limit=-1.0, attempts=2, patience_s=0.0, progress=told.append)
    tuned = find(onnx_models.classifier(tmp_path / "classifier.onnx"), None, tmp_path)
    with alone(print), bench(tuned, Requests(1, {}), plan, Console(quiet=True)) as trying:
        for settings in (AS_CONFIGURED, Settings(delay_us=500)):
            trying.load(settings, 4)
            # Triton begins to count anew with each load.
            assert trying._server.images_served("classifier") > 0
        told.clear()
        trying.measure(2)
        again = len(told)
        assert not trying.never_quiet
        trying.measure(2)
        assert trying.never_quiet
        trying.measure(2)
    window = "queue delay us 500: classifier, batch 1, concurrency 2"
    assert [text for text in told[:again] if "waiting" not in text] == [window, window]
    assert sum("waiting; other processes took" in text for text in told[:again]) == 1
    # After two in a row they are taken as they come.
    assert [told[-1], "waiting" in told[-2]] == [window, False]


# In place of perf_analyzer: of two requests under way it reports the rate that comes next in the file beside it.
SAYING = """
import sys
from pathlib import Path
rates = Path(__file__).with_suffix(".txt")
rate, *others = rates.read_text().split()
rates.write_text(" ".join(others))
report = "Concurrency,Inferences/Second,p50 latency,p99 latency\\n2," + rate + ",1000,2000\\n"
Path(sys.argv[sys.argv.index("-f") + 1]).write_text(report)
"""


def test_a_slow_window_makes_no_other_settings_windows_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the first one of a model that is cold make those longer that count."""
    program, rates = tmp_path / "saying.py", tmp_path / "saying.txt"
    program.write_text(SAYING)
    tool = Tool((sys.executable, str(program)), "0")
    monkeypatch.setattr("pinstream_cli.tuning.server.find_perf_analyzer", lambda say: tool)
    tuned = find(onnx_models.classifier(tmp_path / "classifier.onnx"), None, tmp_path)
    plan = Plan(window_s=0.3, foreign_limit=1.0)
    with alone(print), bench(tuned, Requests(1, {}), plan, Console(quiet=True)) as trying:
        # At 2 images a second it takes a second to answer the two that are under way, and a run three of them.
        rates.write_text("2 2 1000 2 2 1000")
        trying.load(AS_CONFIGURED, 2)
        assert trying.measure(2).seconds == 0.3
        assert trying.measure(2).seconds == pytest.approx(3.3)
        assert trying.measure(2).seconds == pytest.approx(3.3), "of the same settings it is known"
        rates.write_text("1000 1000")
        trying.load(Settings(delay_us=500), 2)
        assert trying.measure(2).seconds == 0.3
        assert not rates.read_text()


def children() -> set[int]:
    """Of this process, which may have servers for the tests of other files."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_a_server_that_has_ended_is_told(tmp_path: Path) -> None:
    tuned = find(onnx_models.classifier(tmp_path / "classifier.onnx"), None, tmp_path)
    before = children()
    with alone(print), bench(tuned, Requests(1, {}), Plan(window_s=0.3), Console(quiet=True)) as trying:
        trying.load(AS_CONFIGURED, 1)
        (server,) = children() - before
        os.kill(server, signal.SIGKILL)
        with pytest.raises(CommandError, match=r"the server does not answer: .+; run tune again"):
            trying.load(Settings(delay_us=500), 1)
