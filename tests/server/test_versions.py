"""Two versions of a model at once, chosen by the client; one that is broken takes none down, and one is taken back."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream_client import Model, ModelNotFound, ServerNotReady
from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running
from tests.server.test_plain_models import pixels

NAME = "classifier"


class Repository:
    """A model of which every version is served; each has weights of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sessions: dict[int, ort.InferenceSession] = {}
        file = add_model(path, NAME, ONE_LINE + "version_policy { all { } }\n")
        file.parent.rmdir()

    def add(self, version: int) -> None:
        self.know(version, onnx_models.classifier(self.path / NAME / f"{version}" / "model.onnx", seed=version))

    def know(self, version: int, made: Path) -> None:
        self._sessions[version] = ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])

    def expected(self, version: int, sent: Any) -> Any:
        return self._sessions[version].run(None, {"pixels": sent})[0]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Repository, Running]]:
    repository = Repository(tmp_path / "repository")
    for version in (1, 2):
        repository.add(version)
    explicit = ["--model-control-mode=explicit", f"--load-model={NAME}"]
    with running(repositories=[repository.path], extra=explicit) as server:
        yield repository, server


def answer(server: Running, protocol: str, version: int | None, sent: Any) -> Any:
    url = f"http://{server.http_url}" if protocol == "http" else f"grpc://{server.grpc_url}"
    with Model(url, NAME, timeout=30, version=version) as model:
        return model.infer({"pixels": sent})["probabilities"]


def assert_version(served: tuple[Repository, Running], asked: int | None, given: int) -> None:
    repository, server = served
    for protocol in ("grpc", "http"):
        sent = pixels(3, seed=given)
        got = answer(server, protocol, asked, sent)
        np.testing.assert_allclose(got, repository.expected(given, sent), rtol=1e-4, atol=1e-6)


def test_the_client_chooses_between_two_versions_that_answer_at_once(served: tuple[Repository, Running]) -> None:
    repository, server = served
    assert_version(served, None, 2)

    def work(number: int) -> None:
        version, sent = 1 + number % 2, pixels(1 + number % 5, seed=number)
        got = answer(server, ("grpc", "http")[number % 3 == 0], version, sent)
        np.testing.assert_allclose(got, repository.expected(version, sent), rtol=1e-4, atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(60)))
    with pytest.raises((ModelNotFound, ServerNotReady)):
        answer(server, "grpc", 7, pixels(1))


def test_a_broken_version_takes_no_other_down_and_a_bad_one_is_taken_back(served: tuple[Repository, Running]) -> None:
    repository, server = served
    broken = repository.path / NAME / "3"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"broken")
    with grpc.InferenceServerClient(server.grpc_url) as control:
        with pytest.raises(InferenceServerException, match="is not an ONNX model"):
            control.load_model(NAME)
        assert not control.is_model_ready(NAME, "3")
        for version in (1, 2):
            assert_version(served, version, version)
        assert_version(served, None, 2)
        # Put right, it is the one that those get who ask for none.
        shutil.rmtree(broken)
        repository.add(3)
        control.load_model(NAME)
        assert_version(served, None, 3)
        # And taken back: without its directory the one before is.
        shutil.rmtree(broken)
        control.load_model(NAME)
        assert_version(served, None, 2)
        assert_version(served, 1, 1)


def test_by_default_the_newest_is_served_and_taken_back_by_removing_it_and_no_request_is_lost(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    (repository.path / NAME / "config.pbtxt").write_text(ONE_LINE)
    repository.add(1)
    polled = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with (
        running(repositories=[repository.path], extra=polled) as server,
        Model(f"grpc://{server.grpc_url}", NAME, timeout=30) as model,
    ):

        def newest() -> int:
            """The version that a request without one gets; that it gets any is what this is about."""
            sent = pixels(2)
            got = model.infer({"pixels": sent})["probabilities"]
            (given,) = (v for v in (1, 2) if np.allclose(got, repository.expected(v, sent), rtol=1e-4, atol=1e-6))
            return given

        def served(version: int) -> bool:
            deadline = time.monotonic() + 30
            while newest() != version and time.monotonic() < deadline:
                threading.Event().wait(0.02)
            return newest() == version

        repository.know(2, onnx_models.classifier(tmp_path / "2" / "model.onnx", seed=2))
        (tmp_path / "2").rename(repository.path / NAME / "2")
        assert served(2)
        (repository.path / NAME / "2").rename(tmp_path / "2")
        assert served(1)
