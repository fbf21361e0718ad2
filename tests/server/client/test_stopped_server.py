"""One of two servers is asked to end under load, as a new release is rolled out: who knows both does not notice.

Over gRPC, where Triton 2.51 refuses some of what it has begun; over HTTP it answers that.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pinstream_cli.triton.server import LONGEST_STOP_S
from pinstream_client import Detector
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running
from tests.server.serve_process import Serve

CLIENTS = 8


def test_no_call_is_lost_where_another_server_is_there(
    start: Callable[..., Serve], tiny: Running, tiny_service: Path, noises: list[Shown]
) -> None:
    ending = start("--model", tiny_service)
    ending.wait_for("Stop with Ctrl-C")
    urls = [f"grpc://{ending.grpc_url}", url_of(tiny, "grpc")]
    stop = threading.Event()

    def keep_calling(first: int) -> list[bool]:
        right = []
        for one in itertools.cycle([*noises[first:], *noises[:first]]):
            right.append(same(detector.detect(one.pixels, **LOOSE), one.found))
            if stop.is_set():
                return right
        raise AssertionError

    with Detector(urls, timeout=TIMEOUT_S) as detector, ThreadPoolExecutor(CLIENTS) as pool:
        calls = [pool.submit(keep_calling, client % len(noises)) for client in range(CLIENTS)]
        try:
            threading.Event().wait(1)
            before = detector.statistics().models["yolox"]["success"].count
            ending.process.terminate()
            assert ending.end(LONGEST_STOP_S) == 0
        finally:
            stop.set()
        right = [answer for call in calls for answer in call.result(2 * TIMEOUT_S)]
    assert before > 0
    assert len(right) > CLIENTS
    assert all(right)
