"""One measurement at a time on a machine, whoever makes it and however it ends."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.benchmark import alone as module
from pinstream_cli.benchmark.alone import alone
from pinstream_cli.errors import CommandError
from pinstream_cli.main import main

MODEL = "models/shapes_nano.onnx"
HOLDING = """
import sys
from pathlib import Path
from pinstream_cli.benchmark.alone import alone
with alone(print, Path(sys.argv[1])):
    print("alone", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that measures until its standard input is closed, or until it is killed."""
    command = [sys.executable, "-c", HOLDING, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_one_says_that_it_waits_and_goes_on_however_the_first_ends(tmp_path: Path, killed: bool) -> None:
    lock = tmp_path / "lock"
    said: list[str] = []
    told = threading.Event()

    def notice(text: str) -> None:
        said.append(text)
        told.set()

    def measure() -> None:
        with alone(notice, lock):
            said.append("measured")

    with another(lock) as first:
        second = threading.Thread(target=measure, daemon=True)
        second.start()
        assert told.wait(10)
        second.join(0.3)
        assert len(said) == 1, "it waits"
        assert "Another `pinstream bench` or `tune` measures on this machine" in said[0]
        if killed:
            first.kill()
        elif first.stdin is not None:
            first.stdin.close()
        second.join(10)
    assert said[1:] == ["measured"]


def test_one_after_the_other_nobody_waits(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(pytest.fail, tmp_path / "lock"):
            assert (tmp_path / "lock").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    refused = pytest.raises(CommandError, match="lock, which keeps others from measuring, cannot be opened")
    with refused, alone(pytest.fail, tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "engine", "--model", MODEL],
        ["bench", "timeline", "--model", MODEL, "--out", "{}/out"],
        ["tune", MODEL, "--dry-run"],
    ],
)
def test_whatever_measures_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    def opened(lock: Path) -> int:
        raise OSError(errno.EIO, f"{lock} of a test")

    monkeypatch.setattr(module, "_opened", opened)
    done = CliRunner().invoke(main, [text.format(tmp_path) for text in arguments])
    assert done.exit_code == 2, done.output
    assert f"{module.LOCK} of a test" in done.output
