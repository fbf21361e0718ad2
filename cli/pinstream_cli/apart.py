"""Work on a model from outside in a process of its own: it may never end, or end its process, and is stopped from here.

ONNX Runtime folds constants and computes without looking whether anybody still waits, and holds off Ctrl-C meanwhile.
The two talk in lines of JSON: a process in which a model has run is not trusted with more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pinstream.errors import PinstreamError, first_line
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.errors import CommandError
from pinstream_cli.terminal import show_controls

# Of a step. A graph of 100,000 nodes takes some ten.
PATIENCE_S = 300.0
# Isolated until it has our own search path: nothing is imported from the directory that the user is in.
_START = """
import json, sys
given = json.loads(sys.stdin.buffer.readline())
sys.path[:] = given["path"]
from pinstream_cli.apart import work_here
work_here(int(sys.argv[1]), given)
"""
# Where the difference matters to who catches it; whatever else goes wrong there is a BuildError here.
_ERRORS: Mapping[str, type[CommandError]] = {"NotYoloxError": NotYoloxError}
# Of what comes back: class names, and how precise each check was.
_MOST_BYTES = 8 << 20
_LONGEST_ERROR = 4000  # characters
_TO_END_S = 5.0  # once it has closed its end
_UNLIKE_WHAT_IS_EXPECTED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _NotUnderstood(Exception):
    """What the other process says, in words."""


def apart(
    model: Path,
    work: Callable[..., Any],
    *arguments: Any,
    read: Callable[[Any], Any] = lambda value: value,
    seconds: float = PATIENCE_S,
    progress: Callable[[str], None] = lambda step: None,
    **named: Any,
) -> Any:
    """Has work done in another process.

    Args:
        model: What is worked on, for messages.
        work: A function of a module, called there with the arguments and a function `progress`, as this one.
        arguments: What JSON can say, as all else that goes from one process to the other.
        read: Makes of what `work` gives, as JSON has it (lists for tuples), what is wanted.
        seconds: How long a step may take, from one call of `progress` to the next.
        progress: Called here with a few words at the start of every step.
        named: More arguments.

    Raises:
        BuildError: A step took longer, the process came to an end in it or said what it should not, or `work` failed.
        NotYoloxError: `work` raised it.
    """
    told, telling = os.pipe()
    # A session of its own: Ctrl-C is for us. While its stdin is open, it knows that we are there.
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, str(telling)],
        stdin=subprocess.PIPE,
        pass_fds=[telling],
        start_new_session=True,
    )
    os.close(telling)
    step = "starting"
    try:
        assert process.stdin is not None
        task = {
            "path": sys.path,
            "model": str(model),
            "work": [work.__module__, work.__qualname__],
            "arguments": arguments,
            "named": named,
        }
        with contextlib.suppress(BrokenPipeError):  # it has come to an end, which is told below
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        for kind, value in _messages(told, seconds):
            if kind == "failed":
                raise _ERRORS.get(value[0], BuildError)(value[1])
            if kind == "done":
                return _read(read, value)
            progress(step := value)
        # Its pipe is closed; where it goes on all the same it is ended below.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TO_END_S)
        raise BuildError(
            f"{model}: the process for it came to an end ({_ending(process.poll())}) while {step}; "
            "give it more memory if it was killed, else export the model again"
        )
    except _NotUnderstood as error:
        raise BuildError(
            f"{model}: the process for it says {error} while {step}, and was stopped; names in it may be far too long, "
            "or it does harm: export the model again"
        ) from None
    except TimeoutError:
        raise BuildError(
            f"{model}: {step} took more than {seconds:g} s, and was stopped; if it is a model that you trust, "
            "build it with `pinstream build --timeout SECONDS`, which gives a step more, and serve what that makes"
        ) from None
    finally:
        process.kill()
        process.communicate()
        os.close(told)


def work_here(descriptor: int, given: Mapping[str, Any]) -> NoReturn:
    """The other process: does the work that it was given, tells how it goes, and ends."""
    show_controls()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, name = given["work"]
    work = getattr(importlib.import_module(module), name)

    def tell(kind: str, value: Any) -> None:
        line = json.dumps([kind, value]).encode() + b"\n"
        while line:
            line = line[os.write(descriptor, line) :]

    try:
        done = work(*given["arguments"], **given["named"], progress=lambda step: tell("step", step))
    except (CommandError, PinstreamError) as error:
        tell("failed", [type(error).__name__, str(error)[:_LONGEST_ERROR]])
    except Exception as error:  # of what reads models: whatever they raise, the model is what is wrong
        why = first_line(error)[:_LONGEST_ERROR]
        tell("failed", ["", f"{given['model']} cannot be used: {type(error).__name__}: {why}; export it again"])
    else:
        tell("done", done)
    # At once: Python would wait for the thread, which has nothing to wait for.
    os._exit(0)


def _messages(told: int, seconds: float) -> Iterator[tuple[str, Any]]:
    """What the other process says, until it ends.

    Raises:
        TimeoutError: It has said nothing whole for so long.
        _NotUnderstood: What it says is no message, or longer than any can be.
    """
    begun = bytearray()
    ends = time.monotonic() + seconds
    while True:
        if not select.select([told], [], [], max(0.0, ends - time.monotonic()))[0]:
            raise TimeoutError
        if not (found := os.read(told, 1 << 16)):
            return
        *lines, rest = found.split(b"\n")
        for line in lines:
            yield _message(begun + line)
            begun.clear()
            ends = time.monotonic() + seconds
        begun += rest
        if len(begun) > _MOST_BYTES:
            raise _NotUnderstood(f"more than {_MOST_BYTES >> 20} MiB")


def _message(line: bytearray) -> tuple[str, Any]:
    try:
        kind, value = json.loads(line)
        texts = {"step": [value], "failed": [*value] if kind == "failed" else [], "done": []}[kind]
    except _UNLIKE_WHAT_IS_EXPECTED:
        texts = [None]
    if not all(isinstance(text, str) for text in texts) or (kind == "failed" and len(texts) != 2):
        raise _NotUnderstood("what is no message")
    return kind, value


def _read(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except _UNLIKE_WHAT_IS_EXPECTED:
        raise _NotUnderstood("what is not what was asked for") from None


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock Python wants at its end
    os.kill(os.getpid(), signal.SIGKILL)


def _ending(code: int | None) -> str:
    if code is None:
        return "it says nothing more"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
