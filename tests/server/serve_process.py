"""`pinstream serve` as a process of its own, for the tests that look at it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.leftovers import prefix_of
from pinstream_cli.triton.server import LONGEST_STOP_S

SHM = Path("/dev/shm")


class Serve:
    """A `pinstream serve` process, its output collected as it comes."""

    def __init__(
        self,
        *arguments: str | Path,
        endpoints: Endpoints | None = None,
        env: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
    ) -> None:
        self.endpoints = endpoints or Endpoints.free()
        ports = [f"--http-port={self.endpoints.http}", f"--grpc-port={self.endpoints.grpc}"]
        ports += [f"--metrics-port={self.endpoints.metrics}"]
        command = [sys.executable, "-X", "faulthandler", "-m", "pinstream_cli", "serve", *map(str, arguments), *ports]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""
        return self.endpoints.grpc_url

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return self.endpoints.http_url

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.endpoints.host}:{self.endpoints.metrics}/metrics"

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.text}"
            assert time.monotonic() < deadline, f"no {text!r} in: {self.text}"
            threading.Event().wait(0.05)

    def end(self, seconds: float = 60) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def stop(self) -> None:
        """End it if it runs; where it does not end, what its threads were at is in the error."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.end(LONGEST_STOP_S + 10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            threading.Event().wait(1)
            self.process.kill()
            self.end(10)
            raise AssertionError(f"it did not end after SIGTERM: {self.text}") from None


def left_behind(serve: Serve) -> list[Path]:
    """What in /dev/shm has the mark of this process."""
    return list(SHM.glob(f"{prefix_of(serve.process.pid)}*"))


def ready(endpoints: Endpoints, path: str = "/v2/health/ready") -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoints.http_url}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
