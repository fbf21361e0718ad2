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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pinstream.errors import PinstreamError
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.errors import CommandError

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
_MOST_BYTES = 64 << 20


def apart(
    model: Path,
    work: Callable[..., Any],
    *arguments: Any,
    seconds: float = PATIENCE_S,
    progress: Callable[[str], None] = lambda step: None,
    **named: Any,
) -> Any:
    """Has work done in another process.

    Args:
        model: What is worked on, for messages.
        work: A function of a module, called there with the arguments and a function `progress`, as this one.
        arguments: What JSON can say, as all else that goes from one process to the other.
        seconds: How long a step may take, from one call of `progress` to the next.
        progress: Called here with a few words at the start of every step.
        named: More arguments.

    Returns:
        What `work` gives, as JSON has it: lists for tuples.

    Raises:
        BuildError: A step took longer, the process came to an end in it, or `work` raised an error of ours.
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
        task = {"path": sys.path, "work": [work.__module__, work.__qualname__], "arguments": arguments, "named": named}
        with contextlib.suppress(BrokenPipeError):  # it has come to an end, which is told below
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        for kind, value in _messages(told, seconds):
            if kind == "failed":
                raise _ERRORS.get(value[0], BuildError)(value[1])
            if kind == "done":
                return value
            progress(step := value)
        raise BuildError(
            f"{model}: the process for it came to an end ({_ending(process.wait())}) while {step}; "
            "give it more memory if it was killed, else export the model again"
        )
    except TimeoutError:
        raise BuildError(
            f"{model}: {step} took more than {seconds:g} s, and was stopped; if it is a model that you trust, "
            "give `pinstream build` more with --timeout SECONDS"
        ) from None
    finally:
        process.kill()
        process.communicate()
        os.close(told)


def work_here(descriptor: int, given: Mapping[str, Any]) -> None:
    """The other process: does the work that it was given, and tells how it goes."""
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
        tell("failed", [type(error).__name__, str(error)])
    else:
        tell("done", done)


def _messages(told: int, seconds: float) -> Iterator[tuple[str, Any]]:
    """What the other process says, until it ends.

    Raises:
        TimeoutError: It has said nothing for so long.
    """
    begun = b""
    while len(begun) < _MOST_BYTES:
        if not select.select([told], [], [], seconds)[0]:
            raise TimeoutError
        if not (found := os.read(told, 1 << 16)):
            return
        *lines, begun = (begun + found).split(b"\n")
        for line in lines:
            kind, value = json.loads(line)
            yield kind, value


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
