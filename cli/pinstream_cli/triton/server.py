"""One tritonserver process: start it, follow its log, wait until its models are ready, stop it, clean up after it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pinstream.places import REPOSITORIES
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.access import Access
from pinstream_cli.triton.arguments import values_of
from pinstream_cli.triton.assemble import RunDirectory
from pinstream_cli.triton.child import Child
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.install import TritonInstall
from pinstream_cli.triton.leftovers import close_regions, hold_regions, remove_regions, shm_prefix
from pinstream_cli.triton.loads import FAILED, LoadFailed, Loads, Version
from pinstream_cli.triton.log import LogFile
from pinstream_cli.triton.preflight import no_shared_memory
from pinstream_cli.triton.stops import check_stops, uninterrupted
from pinstream_cli.triton.stubs import Stubs

# Of a model that answers nothing any more, and is READY to Triton all the same; a line break in it is written out, so
# that no client's text gets to the beginning.
LOST = re.compile(r'^E\d+ \S+ \d+ [^\]\s]+\] "?\[pinstream\] LOST (.*?)"?$')
# Of Triton itself, at the beginning of a line as well. It may hang as it looks for what to write behind that, where its
# memory is damaged, and then neither ends nor answers. SIGINT and SIGTERM, of which it says the same, are no crash.
CRASHED = re.compile(r"^Signal \(.*?(6|11)\)")
# What Triton says of a model whose configuration it cannot read or that has no version, and where in the file that is.
COMPLAINT = re.compile(r'^(?:E\d{4} \S+ \d+ [^\]\s]+|\[libprotobuf ERROR [^\]]+)\] "?(.*?)"?$')
NOT_ALL_MODELS = re.compile(r"failed to load all models")
STARTED = re.compile(r"Started (HTTPService|GRPCInferenceService)")
WRONG_OPTION = re.compile(r"(unrecognized option|requires an argument|ambiguous)")
# A machine without a GPU makes Triton say these at every start; they mean nothing more than that.
NO_GPU_NOISE = re.compile(
    r"CUDA driver version is insufficient|CudaDriverHelper|NVML|DCGM|(CUDA|pinned) memory pool|no CUDA-capable"
)
# What Triton gives requests, and its models: it takes about a second to stop one Python instance, one after the other.
EXIT_TIMEOUT_S = 30
# It gives stubs as long again, which have nothing to answer any more. A supervisor's grace has to be longer.
LONGEST_STOP_S = EXIT_TIMEOUT_S + 10.0
# How often Triton looks at the CPU's and the GPU's load. Its thread for that sleeps as long before it sees that the
# server ends: with Triton's own two seconds a stop took a second more, on average.
METRICS_INTERVAL_MS = 500


class TritonServer:
    """A tritonserver child process.

    Args:
        install: The Triton to run.
        run: Its run directory; the log goes there.
        repositories: Model repositories.
        endpoints: Where to listen.
        extra: More of tritonserver's own arguments; they come last, so they win.
        access: Who may do what.
        environment: What tritonserver and its stubs get beside the installation's environment.
        on_ready: Told a model's name and the seconds since the start when it has loaded.
        on_log: Given every line of the log.
        reword: Changes lines of the log before anything else looks at them.

    Attributes:
        loads: Which models are loaded.
        stubs: Their processes; of a server that was started.
        lost: Which model instance can never answer again, and why, or that Triton cannot; empty while all can.
    """

    def __init__(
        self,
        install: TritonInstall,
        run: RunDirectory,
        repositories: Sequence[Path],
        endpoints: Endpoints,
        extra: Sequence[str] = (),
        access: Access | None = None,
        environment: Mapping[str, str] | None = None,
        on_ready: Callable[[str, float], None] = lambda name, seconds: None,
        on_log: Callable[[str], None] = lambda line: None,
        reword: Callable[[str], str] = lambda line: line,
    ) -> None:
        # Unique, so that what a killed server leaves in /dev/shm is known to be ours.
        self.shm_prefix = shm_prefix(os.getpid(), run.path.name)
        self.endpoints = endpoints
        connections = endpoints.connections()
        self._connections = [connections[name] for name in connections if not _refused(f"--allow-{name}", extra)]
        places = [str(path.absolute()) for path in repositories]
        self._command = [
            str(install.binary),
            *(f"--model-repository={place}" for place in places),
            f"--backend-directory={run.backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--metrics-interval-ms={METRICS_INTERVAL_MS}",
            # Else one version of one model that would not load makes the server not ready until it is started again.
            "--strict-readiness=false",
            *endpoints.arguments(),
            *(access or Access()).arguments(extra),
            *extra,
        ]
        self._environment = {**install.environment(), REPOSITORIES: ";".join(places), **(environment or {})}
        self._log_path = run.log
        self._lock = run.lock
        self._on_ready = on_ready
        self._on_log = on_log
        self._reword = reword
        self._region_lock: int | None = None
        self._child: Child | None = None
        self._reader: threading.Thread | None = None
        self._started = False
        self._ready = False
        self._complaints: list[str] = []
        self._wrong_option = ""
        self._not_all_models = False
        self.loads = Loads()
        self.lost = ""
        self._crashed = ""
        self._tail: deque[str] = deque(maxlen=8)

    def start(self) -> None:
        """Start the process; returns at once.

        Raises:
            CommandError: There is no shared memory for it, or no room for another process.
        """
        self._began = time.monotonic()
        with uninterrupted():
            try:
                self._region_lock = hold_regions(self.shm_prefix)
            except FileExistsError as error:
                raise CommandError(
                    f"{error.filename} is there already, and is not ours; start again, which takes another name"
                ) from None
            except OSError as error:
                raise no_shared_memory(f"cannot be written to ({error.strerror})") from None
            reader = threading.Thread(target=self._follow_log, name="triton-log", daemon=True)
            try:
                # What is ours stays marked as in use for as long as any of its processes lives.
                self._child = Child(self._command, self._environment, [self._lock, self._region_lock])
                self.stubs = Stubs(self._child.pid, self.loads)
                reader.start()
            except (OSError, subprocess.SubprocessError, RuntimeError) as error:
                # Of memory or of processes there may be too few for a while, as where something has just died of it.
                self._abandon()
                raise CommandError(f"tritonserver cannot be started: {error}; {_remedy(error)}") from None
            self._reader = reader

    def _follow_log(self) -> None:
        assert self._child is not None
        log = LogFile(self._log_path)
        # To the end whatever happens: Triton stands still, and says that it is ready, once nobody takes its log.
        for line in map(self._reword, self._child.output):
            log.write(line)
            self._read_line(line.rstrip("\n"))
        log.close()

    def _read_line(self, line: str) -> None:
        failed = FAILED.search(line)
        # Before the start its reason becomes the error that ends the command: once is enough.
        if failed is None or self._started:
            _tell(self._on_log, line)
        if line.strip() and not NO_GPU_NOISE.search(line) and not line.startswith(("+", "|")):
            self._tail.append(line)
            if (complaint := COMPLAINT.match(line)) and not self._ready:
                self._complaints.append(complaint[1])
        if loaded := self.loads.read(line):
            _tell(self._on_ready, loaded, time.monotonic() - self._began)
        elif lost := LOST.search(line):
            self.lost = lost[1]
        elif crashed := CRASHED.search(line):
            self.lost = self._crashed = f"Triton has crashed with signal {crashed[1]}"
        elif NOT_ALL_MODELS.search(line):
            self._not_all_models = True
        elif STARTED.search(line):
            self._started = True
        elif WRONG_OPTION.search(line) and not self._wrong_option and not self._started:
            self._wrong_option = line

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every model is loaded and the server takes requests.

        Raises:
            LoadFailed: A model could not be loaded, or not in time; with each one's reason.
            CommandError: It ended before, or was not ready in time, for another reason.
        """
        assert self._child is not None
        deadline = time.monotonic() + timeout_s
        # Triton says that it has started a moment before it listens.
        while not (self._started and self._listens()):
            check_stops()
            if self._child.wait(0.02) is not None:
                raise self._why_ended()
            if self._crashed:
                self._give_up(self._crashed)
            self.close_regions()
            self.stubs.look()
            if stuck := self.stubs.stuck():
                self._give_up(f"{stuck} while it was loaded", stuck.version)
            if time.monotonic() > deadline:
                self._give_up(
                    f"Triton was not ready within {timeout_s:.0f} s; its last words: {self._last_words()}; "
                    "give it longer with --startup-timeout, or look at the whole log with --verbose"
                )
        self.close_regions()
        self._ready = True

    def close_regions(self) -> None:
        """Keep other users from what requests bring; to be called again and again, as every load makes new regions."""
        close_regions(self.shm_prefix)

    def _give_up(self, why: str, version: Version | None = None) -> NoReturn:
        """End a server that does not get ready; nothing in it is worth waiting for."""
        failed = dict.fromkeys([version] if version else list(self.loads.loading), why)
        self.stop(0.0)
        raise LoadFailed(failed, why) if failed else CommandError(why)

    def _listens(self) -> bool:
        # A connection that the exception of a signal leaves open would hold Triton up as it stops, by 20 to 30 seconds.
        with uninterrupted():
            try:
                for address in self._connections:
                    socket.create_connection(address, timeout=1).close()
            except OSError:
                return False
        return True

    def _why_ended(self) -> CommandError:
        if self._reader is not None:
            self._reader.join(timeout=2)
        assert self._child is not None
        if self.loads.failed:
            return LoadFailed(self.loads.failed)
        # The log's end says nothing: it is Triton's usage behind a wrong option, else that models could not be loaded.
        why = self._wrong_option or "; ".join(self._complaints[:4]) or self._last_words()
        text = f"Triton ended with code {self._child.code}: {why}"
        return LoadFailed({}, text) if self._not_all_models else CommandError(text)

    def _last_words(self) -> str:
        return " / ".join(list(self._tail)[-3:]) or "nothing"

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the process to end; its exit code, or None where it still runs after `timeout_s`."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        assert self._child is not None
        return self._child.pid

    def stop(self, patience_s: float = LONGEST_STOP_S) -> int | None:
        """Let requests in flight finish, end the process, and remove what it left in /dev/shm.

        Loads are not waited for: Triton polls its repositories in the thread that is to end it, and goes on serving
        until the poll is done, however long a model takes.

        Args:
            patience_s: Seconds until it is killed.

        Returns:
            Its exit code; None where it was never started.
        """
        if self._child is None:
            return None
        try:
            return self._child.end(patience_s, self.stubs.end_loads)
        finally:
            if self._reader is not None:
                self._reader.join(timeout=5)
            self._remove_shared_memory()

    def _abandon(self) -> None:
        """End what was not wholly started."""
        if self._child is not None:
            self._child.end(0.0)
        self._remove_shared_memory()

    def _remove_shared_memory(self) -> None:
        remove_regions(self.shm_prefix)
        if self._region_lock is not None:
            os.close(self._region_lock)
            self._region_lock = None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno not in (errno.EAGAIN, errno.ENOMEM):
        return "see that it can be run, or name another with --tritonserver"
    return "see that there are memory and processes left (free -m, ulimit -u, the container's limits)"


def _refused(option: str, arguments: Sequence[str]) -> bool:
    return (values_of(option, arguments) or [""])[-1].lower() in ("false", "off", "0")


def _tell(listener: Callable[..., None], *what: object) -> None:
    """Call back, and go on whatever comes of it: a terminal may be closed, a disk full."""
    # rich ends the program where its pipe is broken.
    with contextlib.suppress(Exception, SystemExit):
        listener(*what)
