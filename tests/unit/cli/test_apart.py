"""Work on models in a process of its own, which is stopped, and whose end is told."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from pinstream_cli import yolox_graph
from pinstream_cli.apart import apart
from pinstream_cli.build import build
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.serve import serve
from tests import onnx_models
from tests.apart_works import end, fail, fail_later, refuse, say, two_steps, write_raw

MODEL = Path("some.onnx")


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def endless(path: Path, *, folded: bool = False) -> Path:
    """A model that looks like a YOLOX export, and takes for ever: to compute or, with constants alone, to load."""
    tensors = [("images", TensorProto.FLOAT, [1, 3, 64, 64])], [("output", TensorProto.FLOAT, [1, 84, 8])]
    if folded:
        names = ["large", *(f"power{index}" for index in range(200))]
        nodes = [
            helper.make_node("ConstantOfShape", ["size"], ["large"]),
            *(helper.make_node("MatMul", [a, "large"], [b]) for a, b in itertools.pairwise(names)),
            helper.make_node("ReduceMax", [names[-1]], ["most"], keepdims=0),
            helper.make_node("Add", ["images", "most"], ["output"]),
        ]
        return onnx_models.save(path, nodes, *tensors, {"size": np.array([8000, 8000])})
    state = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "still")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), state[0], _any("a")],
        [state[1], _any("b")],
    )
    loop = helper.make_node("Loop", ["times", "true", "images"], ["output"], body=body)
    return onnx_models.save(path, [loop], *tensors, {"times": np.array(2**62), "true": np.array(True)})


def _any(name: str) -> helper.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def test_work_is_done_elsewhere_and_its_steps_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "variable")
    steps: list[str] = []
    pid, variable = apart(MODEL, two_steps, 0, progress=steps.append)
    assert pid != os.getpid()
    assert variable == "variable"
    assert steps == ["the first step", "the second step"]
    assert not is_alive(pid)


def test_its_errors_are_raised_here() -> None:
    with pytest.raises(NotYoloxError, match="no YOLOX"):
        apart(MODEL, refuse)


def test_each_step_has_its_time() -> None:
    apart(MODEL, two_steps, 2.5, seconds=4)
    with pytest.raises(BuildError, match=r"some.onnx: the first step took more than 3 s, and was stopped; .*--timeout"):
        apart(MODEL, two_steps, 60, seconds=3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_ends_is_told(number: signal.Signals) -> None:
    with pytest.raises(BuildError, match=f"came to an end \\({number.name}\\) while the last step; "):
        apart(MODEL, end, number)


def test_what_it_says_has_a_limit() -> None:
    assert len(apart(MODEL, say, 4 << 20)) == 4 << 20
    began = time.monotonic()
    with pytest.raises(BuildError, match=r"says more than 8 MiB while the only step"):
        apart(MODEL, say, 100 << 20)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "5",
        '["failed", 5]',
        '["failed", ["BuildError"]]',
        '["step", 5]',
        '["what", ""]',
        '[["step"], 1]',
        "[" * 200_000,
    ],
)
def test_what_is_no_message_is_said_to_be_none(line: str) -> None:
    with pytest.raises(BuildError, match=r"some\.onnx: the process for it says what is no message while starting"):
        apart(MODEL, write_raw, line + "\n")


def test_an_answer_to_something_else_is_not_taken() -> None:
    with pytest.raises(BuildError, match="says what is not what was asked for"):
        apart(MODEL, say, 3, read=int)


def test_time_is_not_lengthened_by_saying_a_little_of_a_message() -> None:
    with pytest.raises(BuildError, match="starting took more than 5 s"):
        apart(MODEL, write_raw, *"x" * 40, pause=0.5, seconds=5)


def test_a_process_that_closes_its_end_and_goes_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstream_cli.apart._TO_END_S", 0.5)
    began = time.monotonic()
    with pytest.raises(BuildError, match=r"came to an end \(it says nothing more\)"):
        apart(MODEL, write_raw, then=60, close=True)
    assert time.monotonic() - began < 30


def test_a_name_that_nobody_would_read_is_shortened(tmp_path: Path) -> None:
    name = "x" + 100_000 * "\x01"
    model = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Identity", [name], ["output"])],
        [(name, TensorProto.FLOAT, [1])],
        [("output", TensorProto.FLOAT, [1])],
    )
    result = CliRunner().invoke(build, [str(model), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "..." in result.stderr
    assert len(result.stderr) < 2000


def test_what_nobody_has_foreseen_is_told_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildError, match=r"some.onnx cannot be used: ValueError: a bell \x07; export it again"):
        apart(MODEL, fail)
    assert capfd.readouterr().err == ""


def test_control_characters_are_shown_there_too(capfd: pytest.CaptureFixture[str]) -> None:
    apart(MODEL, fail_later)
    assert capfd.readouterr().err == r"\x1b]0;OWNED\x07"


def test_it_ends_quietly_where_we_are_slow(capfd: pytest.CaptureFixture[str]) -> None:
    def slow(step: str) -> None:
        time.sleep(2)  # Python gives up waiting for a thread's lock after one

    apart(MODEL, two_steps, 0, progress=slow)
    assert capfd.readouterr().err == ""


def test_nothing_is_imported_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert apart(MODEL, two_steps, 0)


@pytest.mark.parametrize("folded", [False, True])
def test_a_model_that_takes_for_ever_is_given_up(tmp_path: Path, folded: bool) -> None:
    model = endless(tmp_path / "model.onnx", folded=folded)
    began = time.monotonic()
    result = CliRunner().invoke(build, [str(model), "-o", str(tmp_path / "out"), "--timeout", "5"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {model}: reading model.onnx took more than 5 s, and was stopped; ")
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out").exists()


def test_a_command_without_that_option_names_the_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolox_graph, "apart", partial(apart, seconds=5.0))
    model = endless(tmp_path / "model.onnx")
    result = CliRunner().invoke(serve, ["--model", str(model)])
    assert result.exit_code == 2
    assert (
        f"error: {model}: reading model.onnx took more than 5 s, and was stopped; if it is a model that you trust, "
        "build it with `pinstream build --timeout SECONDS`, which gives a step more, and serve what that makes\n"
    ) in result.stderr
    assert "--timeout" in {option for parameter in build.params for option in parameter.opts}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    model = endless(tmp_path / "model.onnx")
    command = [sys.executable, "-m", "pinstream_cli", "build", str(model), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as building:
        children = Path(f"/proc/{building.pid}/task/{building.pid}/children")
        deadline = time.monotonic() + 30
        while not (found := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        building.send_signal(number)
        _, said = building.communicate(timeout=30)
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while is_alive(int(found[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(found[0]))
