"""Work for `apart`, in a module that imports next to nothing: the other process is to be there soon."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from pinstream_cli.build_error import NotYoloxError

Progress = Callable[[str], None]


def two_steps(seconds: float, *, progress: Progress) -> tuple[int, str]:
    progress("the first step")
    time.sleep(seconds)
    progress("the second step")
    time.sleep(seconds)
    return os.getpid(), os.environ.get("SOME", "")


def end(number: int, progress: Progress) -> None:
    progress("the last step")
    os.kill(os.getpid(), number)
    time.sleep(10)


def refuse(progress: Progress) -> None:
    raise NotYoloxError("no YOLOX")


def say(count: int, progress: Progress) -> str:
    progress("the only step")
    return "x" * count


def write_raw(*pieces: str, pause: float = 0.0, then: float = 0.0, close: bool = False, progress: Progress) -> None:
    """What a process may say that is none of ours any more, to the pipe that its command line names."""
    descriptor = int(sys.argv[1])
    for piece in pieces:
        os.write(descriptor, piece.encode())
        time.sleep(pause)
    if close:
        os.close(descriptor)
    time.sleep(then)
    os._exit(0)


def fail(progress: Progress) -> None:
    raise ValueError("a bell \x07\nand more")


def fail_later(progress: Progress) -> None:
    progress("the only step")
    sys.stderr.write("\x1b]0;OWNED\x07")
    sys.stderr.flush()
