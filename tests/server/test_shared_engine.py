"""Several instances of one model share one engine process, behind a real tritonserver."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_cli.triton.stops import STOPS
from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running

# Instances, and the batches of requests that each works on at once.
COUNTS = [(3, 1), (1, 3)]


@pytest.fixture(scope="module", params=COUNTS, ids=["instances", "executions"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    instances, executions = request.param
    config = (
        ONE_LINE
        + f"max_batch_size: 16\ndynamic_batching {{ }}\ninstance_group [ {{ count: {instances} }} ]\n"
        + 'parameters { key: "SHARE_ENGINE" value { string_value: "on" } }\n'
        + f'parameters {{ key: "EXECUTIONS" value {{ string_value: "{executions}" }} }}\n'
    )
    repository = tmp_path_factory.mktemp("shared")
    onnx_models.dynamic_width(add_model(repository, "doubling", config))
    with running(repositories=[repository]) as server:
        yield server
        last = engine_processes(server)
    assert not any(_is_alive(pid) for pid in last)


def engine_processes(server: Running) -> list[int]:
    """Engine processes that stubs of this server have started."""
    found = subprocess.run(["pgrep", "-f", "pinstream/engine_process.py"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split() if server.server.pid in _ancestors(int(pid))]


def _is_alive(pid: int) -> bool:
    """Whether it has not ended; one that nobody has asked about yet has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            # The name, in parentheses, may hold blanks.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def double(client: grpc.InferenceServerClient, rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    tensor = grpc.InferInput("row", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return np.asarray(client.infer("doubling", [tensor], client_timeout=30).as_numpy("doubled"))


def test_every_client_gets_its_own_rows_from_one_process(shared: Running) -> None:
    assert len(engine_processes(shared)) == 1

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        client = grpc.InferenceServerClient(shared.grpc_url)
        for i in range(40):
            rows = random.normal(size=(1 + (number + i) % 5, 4 + i % 2)).astype(np.float32)
            np.testing.assert_array_equal(double(client, rows), rows * 2)
        client.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_memory_that_triton_enlarges_while_it_is_read(shared: Running) -> None:
    """Triton's shared memory begins with 1 MB and grows with the requests; it is read in place all the while."""
    client = grpc.InferenceServerClient(shared.grpc_url)
    for width in (1_000, 100_000, 1_000_000, 5, 3_000_000, 100_000):
        rows = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
        np.testing.assert_array_equal(double(client, rows), rows * 2)
    client.close()


def test_the_engine_process_can_be_killed_with_the_server_and_hears_no_wish_to_stop(shared: Running) -> None:
    (engine,) = engine_processes(shared)
    assert os.getpgid(engine) == os.getpgid(shared.server.pid)
    for number in STOPS:
        os.kill(engine, number)
    time.sleep(0.2)
    assert engine_processes(shared) == [engine]


def test_a_request_the_engine_fails_on_fails_no_other(shared: Running) -> None:
    """The model refuses rows of width 13, in the engine and not before."""

    def work(number: int) -> None:
        client = grpc.InferenceServerClient(shared.grpc_url)
        for _ in range(20):
            rows = np.full((2, 13 if number == 0 else 5), number, np.float32)
            if number == 0:
                with pytest.raises(InferenceServerException):
                    double(client, rows)
            else:
                np.testing.assert_array_equal(double(client, rows), rows * 2)
        client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_killed_engine_process_comes_back_by_itself(shared: Running) -> None:
    client = grpc.InferenceServerClient(shared.grpc_url)
    rows = np.ones((2, 6), np.float32)
    (pid,) = engine_processes(shared)
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while engine_processes(shared) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)  # the kernel frees a process's memory before it closes its sockets
    # Nothing was under way, so the process is started again before anything is handed to it.
    np.testing.assert_array_equal(double(client, rows), rows * 2)
    assert len(engine_processes(shared)) == 1
    assert engine_processes(shared) != [pid]
    client.close()
