"""Shared memory: nothing is left of it in /dev/shm, or with the server, however a client ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc

from pinstream_client import AsyncDetector, Detector, SharedMemoryRefused, regions
from pinstream_client.regions import DIRECTORY, ON_GPU, PREFIX, SystemRegion, locked_file, remove_leftovers
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running, running

CLIENT = Path(__file__).parents[3] / "client"


def files(pid: int | None = None) -> set[str]:
    """The regions of one process, or of all."""
    return {path.name for path in DIRECTORY.glob(f"{PREFIX}{'' if pid is None else f'{pid}-'}*")}


def registered(server: Running) -> set[str]:
    """The regions that the server knows."""
    client = triton_grpc.InferenceServerClient(server.grpc_url)
    known = client.get_system_shared_memory_status(as_json=True).get("regions", {})
    client.close()
    return set(known)


@pytest.fixture
def process(tiny: Running, protocol: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process with a Detector `d` whose region is in use; what comes then is the argument."""
    started = []

    def start(then: str) -> subprocess.Popen[str]:
        script = f"""
            import os, signal, sys, time
            import numpy as np
            from pinstream_client import Detector
            d = Detector({url_of(tiny, protocol)!r}, timeout=60, transport="shm")
            d.detect(np.zeros((8, 8, 3), np.uint8))
            assert d.transport == "shm"
            print("ready", flush=True)
        """
        script = textwrap.dedent(script) + textwrap.dedent(then)
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CLIENT)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        return process

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("d.close()", 0),
        ("", 0),
        ("raise RuntimeError('a bug')", 1),
        ("sys.exit(3)", 3),
        ("time.sleep(60)", -signal.SIGINT),
        ("while True: d.detect(np.zeros((8, 8, 3), np.uint8))", -signal.SIGINT),
    ],
    ids=["close", "end", "exception", "exit", "ctrl-c while it sleeps", "ctrl-c within a call"],
)
def test_nothing_is_left(tiny: Running, process: Callable[[str], subprocess.Popen[str]], then: str, code: int) -> None:
    client = process(f"time.sleep(0.5)\n{then}")
    assert files(client.pid)
    assert files(client.pid) <= registered(tiny)
    if code == -signal.SIGINT:
        time.sleep(0.6)
        client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=30)
    assert client.returncode == code, said
    assert files(client.pid) == set()
    assert not {name for name in registered(tiny) if name.startswith(f"{PREFIX}{client.pid}-")}


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What clients of this process have removed: those of other tests look in the same /dev/shm, for other servers."""
    names: set[str] = set()

    def remove() -> list[str]:
        found = remove_leftovers()
        names.update(found)
        return found

    monkeypatch.setattr(regions, "remove_leftovers", remove)
    return names


def test_what_a_killed_process_leaves_is_removed_by_the_next(
    tiny: Running,
    protocol: str,
    process: Callable[[str], subprocess.Popen[str]],
    noises: list[Shown],
    removed: set[str],
) -> None:
    alive, ours = process("time.sleep(60)"), False
    while not ours:  # else a client of another server was the next
        killed = process("time.sleep(60)")
        left = files(killed.pid)
        assert left
        assert left <= registered(tiny)
        killed.kill()
        killed.wait()
        with Detector(url_of(tiny, protocol), timeout=TIMEOUT_S, transport="shm") as detector:
            assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
            assert files(killed.pid) == set()
            ours = left <= removed
            assert not left & removed & registered(tiny)
            # Those of processes that live are left alone, with the server as well.
            assert files(alive.pid)
            assert files(alive.pid) <= registered(tiny)
            assert files(os.getpid()) <= registered(tiny)
        assert files(os.getpid()) == set()


def test_what_killed_processes_leave_is_forgotten_when_many_begin_at_once(
    tiny: Running,
    protocol: str,
    process: Callable[[str], subprocess.Popen[str]],
    noises: list[Shown],
    removed: set[str],
) -> None:
    killed = process("time.sleep(60)")
    killed.kill()
    killed.wait()
    # A region of GPU memory leaves a name alone, which a server without GPUs does not mind being asked about.
    descriptor, on_gpu = locked_file(ON_GPU)
    os.close(descriptor)
    left = files(killed.pid)
    with Detector(url_of(tiny, protocol), timeout=TIMEOUT_S, transport="shm") as detector:
        found = list(detector.stream([one.pixels for one in noises] * 2, in_flight=8, **LOOSE))
        assert all(same(got, one.found) for got, one in zip(found, noises * 2, strict=True))
        assert not left & removed & registered(tiny)
        assert not (files(killed.pid) | {on_gpu}) & files()


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("os.environ['CUDA_VISIBLE_DEVICES'] = ''", "no CUDA shared memory on GPU 0: .*(CUDA|device)"),
        ("sys.modules['cuda'] = None", "needs cuda-python"),
    ],
    ids=["no GPU", "no cuda-python"],
)
def test_gpu_memory_that_there_is_not_is_noticed_once_and_done_without(tiny: Running, before: str, reason: str) -> None:
    script = f"""
        import os, sys, warnings
        {before}
        import numpy as np
        from pinstream_client import Detector, SharedMemoryRefused
        pixels = np.zeros((8, 8, 3), np.uint8)
        with Detector({url_of(tiny, "grpc")!r}, timeout=60) as whole:
            expected = whole.detect(pixels, conf=0.05)
        warnings.simplefilter("always", SharedMemoryRefused)
        with Detector({url_of(tiny, "grpc")!r}, timeout=60, transport="cuda") as d:
            for found in d.detect([pixels] * 4, conf=0.05):
                np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
            assert d.transport == "tensor"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CLIENT)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(reason, done.stderr)
    assert done.stderr.count("no shared memory with") == 1
    assert not {name for name in files() if name.endswith(ON_GPU)}


def test_regions_are_used_again(tiny_url: str, noises: list[Shown]) -> None:
    with Detector(tiny_url, timeout=TIMEOUT_S, transport="shm") as detector:
        for number in range(20):
            one = noises[number % len(noises)]
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
        assert len(files(os.getpid())) == 1
        list(detector.stream([noises[0].pixels] * 40, in_flight=4))
        assert 1 <= len(files(os.getpid())) <= 4
    assert files(os.getpid()) == set()


def test_asyncio_client_removes_its_regions(tiny_url: str, noises: list[Shown]) -> None:
    async def run() -> None:
        async with AsyncDetector(tiny_url, timeout=TIMEOUT_S, transport="shm") as detector:
            tasks = [asyncio.create_task(detector.detect(noises[0].pixels)) for _ in range(8)]
            await asyncio.sleep(0.02)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            found = await detector.detect([one.pixels for one in noises], **LOOSE)
            assert all(same(left, one.found) for left, one in zip(found, noises, strict=True))
            assert files(os.getpid())

    asyncio.run(run())
    assert files(os.getpid()) == set()


def test_forked_child_has_regions_of_its_own(tiny: Running, noises: list[Shown]) -> None:
    with Detector(url_of(tiny, "grpc"), timeout=TIMEOUT_S, transport="shm") as detector:
        detector.detect(noises[0].pixels)
        mine = files(os.getpid())
        child = os.fork()
        if child == 0:
            code = 1
            try:
                right = same(detector.detect(noises[1].pixels, **LOOSE), noises[1].found)
                own = files(os.getpid())
                detector.close()
                code = 0 if right and len(own) == 1 and not files(os.getpid()) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert files(os.getpid()) == mine
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)


@pytest.fixture(scope="module")
def refusing(tiny_service: Path) -> Iterator[Running]:
    """A server that lets nobody register shared memory."""
    extra = ["--grpc-restricted-protocol=shared-memory:admin-key=secret"]
    extra.append("--http-restricted-api=shared-memory:admin-key=secret")
    with running(tiny_service, extra=extra) as server:
        yield server


def test_server_that_refuses_is_noticed_once_and_done_without(
    refusing: Running, protocol: str, noises: list[Shown]
) -> None:
    with Detector(url_of(refusing, protocol), timeout=TIMEOUT_S, transport="shm") as detector:
        with pytest.warns(SharedMemoryRefused, match="restricted") as warned:
            found = detector.detect([one.pixels for one in noises], **LOOSE)
        assert sum(one.category is SharedMemoryRefused for one in warned) == 1
        assert all(same(left, one.found) for left, one in zip(found, noises, strict=True))
        assert detector.transport == "tensor"
    assert files(os.getpid()) == set()


def test_server_that_refuses_strangers_takes_those_with_the_header(
    refusing: Running, protocol: str, noises: list[Shown]
) -> None:
    headers = {"triton-grpc-protocol-admin-key" if protocol == "grpc" else "admin-key": "secret"}
    with Detector(url_of(refusing, protocol), timeout=TIMEOUT_S, transport="shm", headers=headers) as detector:
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
        assert detector.transport == "shm"


def test_leftovers_are_told_by_their_lock() -> None:
    region = SystemRegion(4096)
    made: list[SystemRegion] = []
    try:
        assert region.name not in remove_leftovers()
        assert region.name in files()
        abandoned = SystemRegion(4096)
        abandoned.abandon()  # as the end of a process does
        assert remove_leftovers() == [abandoned.name]
        # Made and looked for at the same time, none is lost.
        makers = [threading.Thread(target=lambda: made.extend(SystemRegion(64) for _ in range(50))) for _ in range(4)]
        for maker in makers:
            maker.start()
        while any(maker.is_alive() for maker in makers):
            remove_leftovers()
        assert {one.name for one in made} <= files()
    finally:
        for one in (region, *made):
            one.remove()
