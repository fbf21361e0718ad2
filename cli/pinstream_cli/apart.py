"""Work on a model from outside in a process of its own: it may never end, or end its process, and is stopped from here.

ONNX Runtime folds constants and computes without looking whether anybody still waits, and holds off Ctrl-C meanwhile.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from pinstream.errors import PinstreamError
from pinstream_cli.build_error import BuildError
from pinstream_cli.errors import CommandError

T = TypeVar("T")

# Of a step. A graph of 100,000 nodes takes some ten.
PATIENCE_S = 300.0
# Isolated until it has our own search path: nothing is imported from the directory that the user is in.
_START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from pinstream_cli.apart import work_here
work_here(int(sys.argv[1]))
"""


def apart(
    model: Path,
    work: Callable[..., T],
    *,
    seconds: float = PATIENCE_S,
    progress: Callable[[str], None] = lambda step: None,
) -> T:
    """Has work done in another process.

    Args:
        model: What is worked on, for messages.
        work: Called there with a function `progress`, as this one; it and what it gives have to be pickled.
        seconds: How long a step may take, from one call of `progress` to the next.
        progress: Called here with a few words at the start of every step.

    Raises:
        BuildError: A step took longer, or the process came to an end in it.
        CommandError, PinstreamError: What `work` raises of these.
    """
    messages, theirs = Pipe(duplex=False)
    # A session of its own: Ctrl-C is for us. While its stdin is open, it knows that we are there.
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, str(theirs.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    step = "starting"
    try:
        assert process.stdin is not None
        for part in (sys.path, work):
            pickle.dump(part, process.stdin)
        process.stdin.flush()
        while messages.poll(seconds):
            kind, value = messages.recv()
            if kind == "failed":
                raise value
            if kind == "done":
                done: T = value
                return done
            progress(step := value)
    except (EOFError, BrokenPipeError):
        raise BuildError(
            f"{model}: the process for it came to an end ({_ending(process.wait())}) while {step}; "
            "give it more memory if it was killed, else export the model again"
        ) from None
    finally:
        process.kill()
        process.communicate()
        messages.close()
    raise BuildError(
        f"{model}: {step} took more than {seconds:g} s, and was stopped; if it is a model that you trust, "
        "give `pinstream build` more with --timeout SECONDS"
    )


def work_here(descriptor: int) -> None:
    """The other process: does the work that stdin has, and tells how it goes."""
    messages = Connection(descriptor, readable=False)
    work: Callable[..., Any] = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        done = work(progress=lambda step: messages.send(("step", step)))
    except (CommandError, PinstreamError) as error:
        messages.send(("failed", error))
    else:
        messages.send(("done", done))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
