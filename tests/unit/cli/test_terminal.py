"""Control characters in texts from outside, on a real terminal: shown, and not sent."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

import pinstream_cli
from pinstream_cli.console import Console, steps_of
from pinstream_cli.terminal import visible
from pinstream_client.errors import printable
from tests.network import closed_port

TITLE = "\x1b]0;OWNED\x07"
SHOWN = r"\x1b]0;OWNED\x07"
_TURNS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
PINSTREAM = [sys.executable, "-m", "pinstream_cli"]


def on_terminal(*arguments: str) -> str:
    """What a command sends to a terminal that both stdout and stderr are."""
    ours, theirs = pty.openpty()
    # Wide, so that no text is broken.
    environment = {**os.environ, "COLUMNS": "400", "TERM": "xterm"}
    with subprocess.Popen([*PINSTREAM, *arguments], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        text = b""
        # A terminal whose programs have ended cannot be read.
        while part := _read(ours):
            text += part
    os.close(ours)
    return text.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@contextmanager
def server_that_says(reason: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(f"HTTP/1.1 404 {reason}\r\n\r\n".encode("latin-1"))

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def odd_model(path: Path) -> Path:
    value = helper.make_tensor_value_info(f"x{TITLE}", TensorProto.FLOAT, [f"n{TITLE}", 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"n{TITLE}", 4])
    graph = helper.make_graph([helper.make_node("Relu", [value.name], ["y"])], "g", [value], [made])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb", r"a\rb"),
        ("\x9b31m", r"\x9b31m"),
        ("\x7f\b", r"\x7f\x08"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u061cgpj\u200f.exe\u2028", r"\u061cgpj\u200f.exe\u2028"),
        (os.fsdecode(b"\xff.jpg"), r"\udcff.jpg"),
        ("line\n\tline, ü, 犬", "line\n\tline, ü, 犬"),
    ],
)
def test_control_characters_are_written_out_and_new_lines_stay(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_the_client_shows_the_same_characters_and_new_lines_and_tabs_as_well() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    of_client = {found for found in characters if printable(found) != found}
    assert {found for found in characters if visible(found) != found} == of_client - {"\n", "\t"}
    assert all(visible(found) == printable(found) for found in of_client - {"\n", "\t"})
    # All that Unicode knows to turn the direction of writing.
    turns = {found for found in characters if unicodedata.bidirectional(found) in _TURNS} | {*"\u061c\u200e\u200f"}
    assert turns <= of_client


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "{directory}/x{title}.onnx", "-o", "{directory}/out"],
        ["build", "{directory}/missing{title}.onnx", "-o", "{directory}/out"],
        ["doctor", "--model-repository", "{directory}/none{title}"],
        ["detect", "x.jpg", "-u", "{address}", "--api-key-file", "{directory}/none{title}"],
        ["detect", "-{title}.jpg", "-u", "{address}"],
        ["serve", "--model", "{directory}/missing{title}.onnx"],
        ["eval", "--annotations", "{directory}/missing{title}.json", "--images", "{directory}"],
    ],
)
def test_names_of_files_and_tensors_do_not_reach_the_terminal_as_they_are(tmp_path: Path, arguments: list[str]) -> None:
    odd_model(tmp_path / f"x{TITLE}.onnx")
    with closed_port() as address:
        found = on_terminal(*(text.format(directory=tmp_path, title=TITLE, address=address) for text in arguments))
    assert r"\x1b" in found
    assert "\x1b]" not in found
    assert "\x07" not in found
    assert "Traceback" not in found


def test_neither_does_what_a_server_says(tmp_path: Path) -> None:
    with server_that_says(f"None{TITLE}") as url:
        found = on_terminal("fetch", "yolox-nano", "--base-url", url, "-o", str(tmp_path))
    assert f"answers 404 (None{SHOWN})" in found
    assert "\x1b]" not in found


def test_stderr_is_shown_in_a_file_as_well(tmp_path: Path) -> None:
    done = subprocess.run([*PINSTREAM, "build", f"{TITLE}.onnx", "-o", str(tmp_path)], capture_output=True, check=False)
    assert SHOWN in done.stderr.decode()
    assert b"\x1b" not in done.stderr


def test_stdout_is_shown_on_a_terminal_alone(tmp_path: Path) -> None:
    # Only the names are printed: completion, as of data that programs read.
    code = f"from pinstream_cli.terminal import show_controls; show_controls(); print({TITLE!r}, end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode() == TITLE
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True)
    assert os.read(ours, 1000).decode() == SHOWN
    os.close(ours)
    os.close(theirs)


def test_the_console_shows_them_and_keeps_its_own_colours() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard", highlight=False)
    table = Table("name", "found")
    table.add_row(f"cell{TITLE}", Text(f"text{TITLE}", "red"))
    console.print(table)
    console.print(f"[bold]bold[/] print{TITLE}", markup=True)
    console.print(Text(f"styled{TITLE}", "green"))
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(f"task{TITLE}")
    found = file.getvalue()
    for word in ("cell", "print"):
        assert word + SHOWN in found
    # A `Text` has lost its bell already, by rich itself, which also takes it for as wide as it was.
    for word in ("text", "styled", "task"):
        assert rf"{word}\x1b]0;" in found
    assert "\x1b]" not in found
    assert "\x1b[1mbold\x1b[0m" in found
    assert rf"{chr(27)}[32mstyled\x1b]0;OWNED{chr(27)}[0m" in found


@pytest.mark.parametrize("name", ["[red]model", "a[/]b", "[link=x]:smile:"])
def test_a_name_stays_what_it_is(name: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    table = Table("name")
    table.add_row(name)
    console.print(name, table, style="dim")
    with console.status("") as status:
        steps_of(status)(name)
        console.print(status.renderable)
    assert console.file.getvalue().count(name) == 3  # type: ignore[attr-defined]


def test_no_text_with_marks_is_printed_and_no_step_without_care() -> None:
    for path in Path(pinstream_cli.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "markup=True" not in text
        assert path.name == "console.py" or "status.update" not in text
        assert text.count('TextColumn("{task.') == text.count('TextColumn("{task.description}", markup=False)')


def test_rich_s_own_console_is_used_nowhere_else() -> None:
    package = Path(pinstream_cli.__file__).parent
    used = {path.name for path in package.rglob("*.py") if "rich.console" in path.read_text()}
    assert used == {"console.py"}
