"""A model's process that is stopped counts as dead; a service that is frozen as a whole goes on where it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from tests.processes import family
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_plain_models import infer, pixels
from tests.server.test_restart import MODEL, seconds_until, stub_of

# As docs/errors.md has it.
NOTICED_S = 8
FROZEN_S = 6.0


def test_what_is_stopped_is_not_ready_and_comes_back(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--restart")
    serve.wait_for("Stop with Ctrl-C")
    stub = stub_of(serve)
    os.kill(stub, signal.SIGSTOP)
    seconds_until(lambda: not ready(serve.endpoints, MODEL), NOTICED_S)
    seconds_until(lambda: ready(serve.endpoints, MODEL), 60)
    assert "RESTART the process of model 'classifier' has been stopped for" in serve.text
    assert not Path(f"/proc/{stub}").exists()
    serve.process.terminate()
    assert serve.end() == 0
    assert not left_behind(serve)


def test_a_service_that_is_frozen_as_a_whole_goes_on(start: Callable[..., Serve], classifier: Path) -> None:
    """As by `docker pause`; `serve` may be thawed a moment before the others."""
    serve = start("--model", classifier, "--restart")
    serve.wait_for("Stop with Ctrl-C")
    others = [process.pid for process in family(serve).members]
    expected = infer(serve, "classifier", pixels=pixels(1)).as_numpy("probabilities")
    for pid in (serve.process.pid, *others):
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(FROZEN_S)
    serve.process.send_signal(signal.SIGCONT)
    threading.Event().wait(0.5)
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    # Longer than what is stopped may go unnoticed.
    threading.Event().wait(FROZEN_S)
    assert "RESTART" not in serve.text
    assert (infer(serve, "classifier", pixels=pixels(1)).as_numpy("probabilities") == expected).all()
