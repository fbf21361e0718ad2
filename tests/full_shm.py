"""Fills /dev/shm while a server serves: run by tests/server/test_full_machine.py with a small /dev/shm of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream.tensors import Array
from tests import onnx_models
from tests.places import regions, taken
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running
from tests.server.serve_process import SHM, ready
from tests.server.test_plain_models import infer
from tests.server.test_references import assert_equal, by_value, detected, pictures
from tests.server.test_restart import seconds_until
from tests.yolox_exports import Export

OWN, SHARED, SENDING = "own", "shared", "sending"
SHARING = 'instance_group [ { count: 2 } ]\nparameters { key: "SHARE_ENGINE" value { string_value: "on" } }\n'
# Sends its answers by itself; of one that finds no room nobody can tell the client.
EXECUTIONS = """
parameters { key: "SHARE_ENGINE" value { string_value: "on" } }
parameters { key: "EXECUTIONS" value { string_value: "2" } }
"""
SMALL, LARGE = 10, 500_000  # columns; two rows of these many are 4 MB
# Of 96 MiB, which the service wants.
LESS_THAN_HALF_KIB = 40_000
# With the one there is no room for the input, with the other there is, and none for the answer.
ROOMS_KIB = (64, 5000)


@contextlib.contextmanager
def full_but_for(kib: int) -> Iterator[None]:
    """Fill /dev/shm up to so many KiB."""
    filler, status = SHM / "filler", os.statvfs(SHM)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - (kib << 10)))
    yield
    filler.unlink()


def doubles(server: Running, model: str, width: int) -> bool:
    """Whether the model answers; what it answers has to be right."""
    row = np.random.default_rng(width).normal(size=(2, width)).astype(np.float32)
    try:
        got = infer(server, model, row=row).as_numpy("doubled")
    except InferenceServerException as error:
        told = "use '--shm-size'" in error.message() and "Traceback" not in error.message()
        if error.status() != "StatusCode.INTERNAL" or not told:
            raise
        return False
    np.testing.assert_array_equal(got, row * 2)
    return True


def is_answered(server: Running, model: str, width: int) -> bool:
    """Whether an answer comes, be it an error, within two seconds."""
    tensor = grpc.InferInput("row", [2, width], "FP32")
    tensor.set_data_from_numpy(np.ones((2, width), np.float32))
    with grpc.InferenceServerClient(server.grpc_url) as client:
        try:
            client.infer(model, [tensor], client_timeout=2)
        except InferenceServerException as error:
            return bool(error.status() != "StatusCode.DEADLINE_EXCEEDED")
    return True


def plain_models() -> None:
    """Serve, fill, ask, free, ask again."""
    repository = Path(tempfile.mkdtemp())
    onnx_models.dynamic_width(add_model(repository, OWN, ONE_LINE + "max_batch_size: 4\n"))
    onnx_models.dynamic_width(add_model(repository, SHARED, ONE_LINE + "max_batch_size: 4\n" + SHARING))
    onnx_models.dynamic_width(add_model(repository, SENDING, ONE_LINE + "max_batch_size: 4\n" + EXECUTIONS))
    # Triton itself may wait for its whole exit timeout after an answer that found no room.
    with running(repositories=[repository], extra=["--exit-timeout-secs=5"]) as server:
        assert all(doubles(server, model, SMALL) for model in (OWN, SHARED) * 4)
        for room in ROOMS_KIB:
            with full_but_for(room):
                assert not any(doubles(server, model, LARGE) for model in (OWN, SHARED))
                assert all(doubles(server, model, SMALL) for model in (OWN, SHARED) * 4)
                assert ready(server.endpoints)
            # The first that finds room makes the region larger, which it stays: the next round needs an emptier start.
            assert all(doubles(server, model, SMALL) for model in (OWN, SHARED) * 4)
        assert all(doubles(server, model, LARGE) for model in (OWN, SHARED) * 4)
        assert not server.server.lost
        with full_but_for(ROOMS_KIB[1]):
            assert not is_answered(server, SENDING, LARGE)
            # The log is read by a thread of its own.
            seconds_until(lambda: bool(server.server.lost), 5)
            assert f"{SENDING}_0: an answer could not be sent" in server.server.lost
            assert doubles(server, SENDING, SMALL)
        assert server.server.wait(0) is None
    assert not list(SHM.iterdir()), "left in /dev/shm"


def service() -> None:
    """The same with pictures, which go through Triton where their places would take more than half of /dev/shm."""
    export = Export(size=(96, 160)).save(Path(tempfile.mkdtemp()) / "small.onnx")
    few, more, many = pictures(2), pictures(8, seed=9), pictures(32, seed=20)
    with running(export) as server:
        expected = {len(images): by_value(server, images) for images in (few, more)}

        def sizes() -> list[int]:
            return [region.stat().st_size for region in regions(server.server.shm_prefix)]

        def is_right(images: Array) -> None:
            assert_equal(detected(server, images), expected[len(images)])

        is_right(few)
        before = sizes()
        with full_but_for(LESS_THAN_HALF_KIB):
            is_right(more)
            assert sizes() == before
        with full_but_for(ROOMS_KIB[0]):
            is_right(few)
            with pytest.raises(InferenceServerException, match="use '--shm-size'") as refused:
                detected(server, many)
            assert refused.value.status() == "StatusCode.INTERNAL"
            is_right(few)
            assert sizes() == before
        is_right(more)
        assert sizes() > before, "there is room for places again"
        seconds_until(lambda: not taken(server.server.shm_prefix), 5)
    assert not list(SHM.iterdir()), "left in /dev/shm"


if __name__ == "__main__":
    {"plain_models": plain_models, "service": service}[sys.argv[1]]()
    print("all as it should be")
