"""What a killed `pinstream serve` leaves behind is cleared away, and nothing else is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.server.serve_process import SHM, Serve, left_behind


def tritonserver(serve: Serve) -> int:
    """Process id of its tritonserver, which leads the process group that its stubs are in."""
    pid = serve.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def test_the_next_serve_clears_away_what_a_killed_one_left(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path
) -> None:
    env = {"TMPDIR": str(tmp_path)}
    (tmp_path / "pinstream-of-somebody-else").mkdir()
    foreign = SHM / f"triton_python_backend_shm_region_of_{os.getpid()}"
    foreign.touch()
    try:
        killed, alive = start("--model", classifier, env=env), start("--model", classifier, env=env)
        killed.wait_for("Stop with Ctrl-C")
        alive.wait_for("Stop with Ctrl-C")
        group = tritonserver(killed)
        assert left_behind(killed), "it has nothing to leave, so that nothing below shows anything"
        killed.process.kill()
        os.killpg(group, signal.SIGKILL)
        killed.process.wait(10)
        wait_until(lambda: not Path(f"/proc/{group}").exists())
        assert len(list(tmp_path.glob("pinstream-*"))) == 3

        after = start("--model", classifier, env=env)
        after.wait_for("Stop with Ctrl-C")
        # The directory for certain. /dev/shm is everybody's: a serve of another test may have been there before.
        assert "left by a process that was killed" in after.text
        assert not left_behind(killed)
        assert left_behind(alive)
        assert foreign.exists()
        assert (tmp_path / "pinstream-of-somebody-else").exists()
        assert len(list(tmp_path.glob("pinstream-*"))) == 3, "somebody else's, the one alive and the new one"
    finally:
        foreign.unlink()


def test_a_run_directory_is_in_use_while_its_tritonserver_lives(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path
) -> None:
    env = {"TMPDIR": str(tmp_path)}
    killed = start("--model", classifier, env=env)
    killed.wait_for("Stop with Ctrl-C")
    group = tritonserver(killed)
    os.kill(group, signal.SIGSTOP)
    try:
        killed.process.kill()
        killed.process.wait(10)
        after = start("--model", classifier, env=env)
        after.wait_for("Stop with Ctrl-C")
        assert "left by a process that was killed" not in after.text
        assert len(list(tmp_path.glob("pinstream-*"))) == 2
    finally:
        os.kill(group, signal.SIGCONT)
        os.killpg(group, signal.SIGKILL)
