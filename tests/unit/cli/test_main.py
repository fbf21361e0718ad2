"""The `pinstream` group: subcommands are listed without importing them, and a missing extra is one line."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinstream_cli.main import main

ROOT = Path(__file__).parents[3]


def pinstream(*arguments: str, without: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """The command in a Python where some modules cannot be imported; stdout ends with a line of those it imported."""
    script = """
import sys
from pinstream_cli.main import main
try:
    main(prog_name="pinstream")
finally:
    print(*sys.modules)
"""
    with tempfile.TemporaryDirectory() as hidden:
        # Files, which the processes that it starts find as well.
        for name in without:
            (Path(hidden) / f"{name}.py").write_text(
                f"raise ModuleNotFoundError('No module named {name}', name='{name}')"
            )
        path = ":".join([hidden, *(str(ROOT / room) for room in ("cli", "client", "backend"))])
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": path})


def test_help_lists_subcommands_without_importing_them() -> None:
    done = pinstream("--help")
    assert done.returncode == 0
    for name in ("serve", "build", "detect"):
        assert f"\n  {name} " in done.stdout
        assert f"pinstream_cli.{name}" not in done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("name", ["serve", "build"])
def test_missing_dependency_of_a_subcommand_names_the_extra_in_one_line(name: str) -> None:
    missing = ("onnx", "onnxruntime", "cv2", "PIL", "pytriton")
    done = pinstream(
        name, "--model=x.onnx" if name == "serve" else "x.onnx", *(("-o", "y") * (name == "build")), without=missing
    )
    assert done.returncode == 2
    assert "pinstream[server]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_detect_runs_without_the_servers_dependencies() -> None:
    missing = ("onnx", "onnxruntime", "cv2", "PIL", "pytriton", "pinstream")
    done = pinstream("detect", "x.jpg", "-u", "127.0.0.1:1", without=missing)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Triton server answers at grpc://127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_fault_of_our_own_is_not_reported_as_a_missing_extra() -> None:
    done = pinstream("detect", "x.jpg", without=("pinstream_client",))
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr


def test_unknown_subcommand_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["dance"])
    assert result.exit_code == 2
    assert "No such command 'dance'" in result.stderr


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("pinstream, version ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"serve", "build", "detect", "bench", "demo"}),
        ("de", {"detect", "demo"}),
        ("detect --sa", {"--save"}),
        ("detect --format c", {"csv", "coco"}),
        ("detect do", {"do"}),  # the shell completes files by itself
    ],
)
def test_the_shell_completes_subcommands_and_options(words: str, expected: set[str]) -> None:
    environment = {
        "PYTHONPATH": ":".join(str(ROOT / room) for room in ("cli", "client", "backend")),
        "_PINSTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": f"pinstream {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    script = 'from pinstream_cli.main import main; main(prog_name="pinstream")'
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} >= expected
    assert all(line.partition(",")[2].startswith(words.split(" ")[-1]) for line in done.stdout.splitlines())


def test_completing_a_subcommand_imports_none_and_needs_no_extra() -> None:
    done = pinstream("--help", without=("onnx",))
    assert done.returncode == 0
    script = "from pinstream_cli.main import main; import click, sys; "
    script += "print([item.value for item in main.shell_complete(click.Context(main), 'b')], *sys.modules)"
    path = ":".join(str(ROOT / room) for room in ("cli", "client", "backend"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"PYTHONPATH": path}
    )
    assert done.stdout.startswith("['build', 'bench'] ")
    assert not {"pinstream_cli.build", "pinstream_cli.bench"} & set(done.stdout.split())


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word() -> None:
    script = """
import signal, sys
class CtrlC:
    def find_spec(self, name, *_):
        if name == "numpy":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
from pinstream_cli.main import main
assert "numpy" not in sys.modules
main(["serve"], prog_name="pinstream")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
