"""Bytes that are no text where HTTP's clients may put any, sent beside requests of others."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from pinstream_client import Detector
from tests.server.running import Running

IMAGE = '{"name":"image","datatype":"BYTES","shape":[1,1],"data":["x"]}'
BODIES = {
    "value": f'{{"inputs":[{IMAGE}],"parameters":{{"conf":"RAW"}}}}',
    "name": f'{{"inputs":[{IMAGE}],"parameters":{{"RAW":1}}}}',
    "id and value": f'{{"id":"RAW","inputs":[{IMAGE}],"parameters":{{"conf":"RAW"}}}}',
}


@pytest.mark.parametrize("where", BODIES)
def test_no_text_is_the_sender_s_fault_and_nobody_else_s(shapes: Running, demo_picture: Path, where: str) -> None:
    body = BODIES[where].encode().replace(b"RAW", b"\xff")
    stop = threading.Event()
    found: list[int] = []

    def neighbour() -> None:
        with Detector(f"grpc://{shapes.grpc_url}", timeout=30) as detector:
            while not stop.is_set():
                found.append(len(detector.detect(demo_picture)))

    beside = threading.Thread(target=neighbour)
    beside.start()
    connection = http.client.HTTPConnection(shapes.http_url, timeout=30)
    sent = 0
    while sent < 30 or len(found) < 5:
        sent += 1
        connection.request("POST", "/v2/models/yolox/infer", body)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 400, text
        assert b"UTF-8" in text
        assert b"Traceback" not in text
    stop.set()
    beside.join()
    assert len(set(found)) == 1
