"""Finding the engine's process, or starting it. It is known by an abstract Unix socket, which vanishes with it."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from pinstream import errors
from pinstream.engines import engine_name, open_engine
from pinstream.engines.base import Engine
from pinstream.errors import EngineError, ModelFileError, PinstreamError
from pinstream.options import Options
from pinstream.pace import Looking
from pinstream.shared import wire
from pinstream.shared.client import SharedEngine
from pinstream.shared.files import ModelFiles
from pinstream.shared.server import EngineServer
from pinstream.trace import Tracer

LOGGER = logging.getLogger("pinstream.shared")
SCRIPT = Path(__file__).resolve().parents[1] / "engine_process.py"
# Between two looks whether another instance's process has come so far as to listen.
RETRY_S = 0.02
# A process may end, its last instance gone, just as another one comes; not again and again.
MOST_STARTS = 3
# With fewer, what looks all the time would keep Triton itself waiting.
CORES_TO_LOOK = 4
# Instances all come while the model is loaded; a process that none has reached by then is nobody's.
FIRST_INSTANCE_S = 60.0


def shared_engine(model_file: Path, options: Options) -> Engine:
    """The engine of `model_file` in the process that all instances of this model on this GPU share.

    Raises:
        PinstreamError: It could not be loaded; the same error as if it were loaded here.
    """
    files, looking = ModelFiles(model_file), _looking(model_file, options)
    return SharedEngine(lambda: _connect(model_file, options), options.slots, files=files, looking=looking)


def _looking(model_file: Path, options: Options) -> Looking:
    if options.busy_wait:
        return Looking.ALWAYS
    # Two cores look then, an instance's and the engine's. Where the CPU computes, it needs all of them.
    enough = len(os.sched_getaffinity(0)) >= CORES_TO_LOOK
    return Looking.ALONE if enough and engine_name(model_file, options) != "onnxruntime" else Looking.NEVER


def _connect(model_file: Path, options: Options) -> tuple[socket.socket, wire.Message]:
    """A socket to the model's engine process, started where there is none, and its first message.

    Raises:
        ModelFileError: The process ends before it serves, or the address is another user's.
        PinstreamError: The engine cannot be loaded.
    """
    address = _address(model_file, options)
    process: subprocess.Popen[bytes] | None = None
    starts = 0
    while True:
        with contextlib.ExitStack() as stack:
            channel = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            with contextlib.suppress(ConnectionError):
                channel.connect(address)
                hello = _greeted(channel)
                if hello is not None:
                    stack.pop_all()
                    return channel, hello
        if process is not None and process.poll() is not None and (process.returncode or starts >= MOST_STARTS):
            raise ModelFileError(
                f"the engine's process ended with {process.returncode} while it was starting; the server's log says why"
            )
        started = _start(model_file, options, address)
        if started is not None:
            process, starts = started, starts + 1
        time.sleep(RETRY_S)


def _greeted(channel: socket.socket) -> wire.Message | None:
    """Wait until the engine is loaded; None where the process ended instead."""
    if not wire.same_user(channel):
        raise ModelFileError(
            f"the address of the engine's process is held by user {wire.peer(channel)[1]}; stop that process, or set "
            "SHARE_ENGINE to off in config.pbtxt"
        )
    hello, _ = wire.receive(channel)
    if hello is not None and "error" in hello:
        raise getattr(errors, hello["kind"], ModelFileError)(hello["error"])
    return hello


def _address(model_file: Path, options: Options) -> str:
    """One server's one load of one model on one GPU: its instances have the same parent, file and settings."""
    # A plan that AUTO_BUILD has yet to build is not there.
    stat = (model_file if model_file.exists() else model_file.parent).stat()
    identity = [os.getppid(), str(model_file.resolve()), stat.st_mtime_ns, stat.st_size, asdict(options)]
    return f"\0pinstream-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}"


def _start(model_file: Path, options: Options, address: str) -> subprocess.Popen[bytes] | None:
    """Start the process, unless another instance has done so: whoever gets the address bound is the one to do it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ModelFileError(
                    f"no address for the engine's process: {error}; set SHARE_ENGINE to off"
                ) from error
            return None
        return _start_with(listener.fileno(), model_file, options)


def _start_with(listener: int, model_file: Path, options: Options) -> subprocess.Popen[bytes]:
    # Triton's stub embeds Python: what sys.executable says there may be none, and the stub itself goes by PATH.
    here = Path(sys.executable or "").name.startswith("python")
    python = sys.executable if here else shutil.which("python3")
    if python is None:
        raise ModelFileError(
            "no python3 on PATH to run the engine's process with; put it there, or set SHARE_ENGINE=off"
        )
    order = json.dumps({"model_file": str(model_file), "options": asdict(options), "listener": listener})
    # In the server's group, with which a process that hangs is killed.
    process = subprocess.Popen([python, str(SCRIPT)], stdin=subprocess.PIPE, pass_fds=(listener,))
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(order.encode())
    # Waited for whenever it ends: the instance that starts the next one may be another, and nobody else reaps this one.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def run(order: str) -> int:
    """What the engine's process does: load, tell whoever has come, serve, free.

    Args:
        order: JSON of _start.

    Returns:
        Exit code.
    """
    wish = json.loads(order)
    options, model_file = Options.from_json(wish["options"]), Path(wish["model_file"])
    listener = socket.socket(fileno=int(wish["listener"]))
    # From here on instances get through, and see this process's own credentials.
    listener.listen(256)
    try:
        engine = open_engine(model_file, options)
    except Exception as error:
        if not isinstance(error, PinstreamError):
            LOGGER.exception("the engine cannot be loaded")
        _refuse_all(listener, {"error": str(error), "kind": _kind(error)})
        return 0
    # What is loaded stays: the collector of garbage must not look through it again and again, between two batches.
    gc.freeze()
    tracer = Tracer.from_environment("engine")
    observe = tracer.batch if tracer else None
    try:
        looking = _looking(model_file, options)
        server = EngineServer(engine, listener, looking=looking, observe=observe)
    except EngineError as error:
        engine.close()
        _refuse_all(listener, {"error": str(error), "kind": _kind(error)})
        return 0
    # The server stops its instances once they have answered, and the last of them this process. A supervisor (systemd)
    # asks every process at once to end, and so does a terminal that closes. Not before: a load may take minutes.
    for asked in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, signal.SIG_IGN)
    try:
        server.serve(FIRST_INSTANCE_S)
    finally:
        engine.close()
        if tracer:
            tracer.close()
    return 0


def _kind(error: Exception) -> str:
    """The nearest class of `error` that the other side knows."""
    return next((c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), ModelFileError.__name__)


def _refuse_all(listener: socket.socket, hello: wire.Message) -> None:
    """Tell every instance that has come why there is no engine; later ones start a process of their own."""
    listener.settimeout(RETRY_S * 5)
    try:
        while True:
            channel, _ = listener.accept()
            if wire.same_user(channel):
                wire.send(channel, hello)
            channel.close()
    except TimeoutError:
        listener.close()
