"""The regions of /dev/shm through which Triton talks to the processes of models: their names, and who may open them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import tritonclient.grpc as grpc

from pinstream_cli.triton.leftovers import LOCK_NAME
from tests.server.running import running
from tests.server.serve_process import Serve, left_behind
from tests.server.test_leftovers import wait_until


def regions_of(pid: int) -> set[Path]:
    """What a process has mapped of /dev/shm."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path("/dev/shm") / line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}


def test_they_have_the_names_that_later_tritons_open_for_no_client(classifier: Path) -> None:
    with running(classifier) as server:
        found = regions_of(server.server.pid)
        assert found
        for region in found:
            assert region.name.startswith("triton_python_backend_shm_region_"), region
            assert region.name.startswith(server.server.shm_prefix), "else nobody clears it away"


def modes(serve: Serve) -> dict[str, str]:
    """Of its regions, by name."""
    found = {}
    for region in left_behind(serve):
        if not region.name.endswith(LOCK_NAME):
            with contextlib.suppress(FileNotFoundError):
                found[region.name] = oct(region.stat().st_mode & 0o777)
    return found


def test_no_other_user_opens_one_once_its_model_is_served(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--model-control-mode=explicit", "--load-model=*")
    serve.wait_for("Stop with Ctrl-C")
    first = modes(serve)
    assert first
    assert set(first.values()) == {"0o600"}
    with grpc.InferenceServerClient(serve.grpc_url) as client:
        client.unload_model("classifier")
        wait_until(lambda: not first.keys() & modes(serve).keys())
        client.load_model("classifier")
    assert modes(serve)
    wait_until(lambda: set(modes(serve).values()) == {"0o600"}, 2)
