"""A child process that no signal can make its parent lose, or wait for in vain.

The exception of a signal (`stops`) comes between any two steps of Python in the main thread. Just after the process is
forked it is nobody's then; where it comes as `subprocess` takes its lock, nobody gives that back, and every later wait
is for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

LOOK_EVERY_S = 0.02
# The kernel takes its time for what is large.
KILLED_S = 5.0
PR_SET_PDEATHSIG = 1
# More than twice the ports that Linux has for connections of one address; and few enough to be closed one by one, as
# some programs do with all that there may be.
MOST_FILES = 1 << 16


class Child:
    """A process that leads a group of its own, and is asked to stop should its parent be killed.

    It may have as many files open as the hard limit lets it, up to `MOST_FILES`.

    To be made and kept within `stops.uninterrupted`.

    Args:
        command: Its arguments.
        environment: Its environment.
        descriptors: File descriptors that it inherits.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in a terminal must not reach Triton's stubs: they would die under the requests they serve.
            start_new_session=True,
            pass_fds=descriptors,
            preexec_fn=_prepare,
        )

    @property
    def pid(self) -> int:
        """Process id, and that of its group."""
        return self._process.pid

    @property
    def output(self) -> IO[str]:
        """What it writes, errors too."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal's number; None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Only a look, without a lock, which takes nothing that could get lost.
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._process.poll()
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self, timeout_s: float | None = None, meanwhile: Callable[[], None] = lambda: None) -> int | None:
        """Wait for its end, doing `meanwhile` again and again; its exit code, or None where it outlasts `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.code) is None:
            meanwhile()
            left = LOOK_EVERY_S if deadline is None else min(LOOK_EVERY_S, deadline - time.monotonic())
            if left <= 0:
                break
            time.sleep(left)
        return code

    def end(self, patience_s: float, meanwhile: Callable[[], None] = lambda: None) -> int | None:
        """Ask it to end, wait as `wait` does, and kill what is left of its group after `patience_s`; its exit code."""
        try:
            if self.code is None:
                os.kill(self.pid, signal.SIGTERM)
                self.wait(patience_s, meanwhile)
        finally:
            # Too slow, or a second Ctrl-C: whoever asks twice does not want to wait. Also where it has ended by itself:
            # its own children may have outlived it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self.wait(KILLED_S)
            self._process.poll()
        return code


def _prepare() -> None:
    """In the child: be asked to stop should the parent be killed, so that no server is left without an owner."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
