"""One server with plain ONNX models, and one with the YOLOX service, for all tests that share them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import onnx_models
from tests.server.running import Running, running
from tests.server.serve_process import Serve
from tests.shared_files import shared_model

ONE_LINE = 'backend: "pinstream"\n'


def add_model(repository: Path, name: str, config: str = ONE_LINE) -> Path:
    """A model directory of one configuration; returns where its model file goes."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    return repository / name / "1" / "model.onnx"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Plain ONNX models behind one line of configuration each, and a few with more."""
    repository = tmp_path_factory.mktemp("plain")
    onnx_models.classifier(add_model(repository, "classifier"))
    onnx_models.classifier(add_model(repository, "classifier_4", ONE_LINE + "max_batch_size: 4\n"))
    onnx_models.classifier(add_model(repository, "static_4"), batch=4)
    onnx_models.classifier(add_model(repository, "static_4_of_16", ONE_LINE + "max_batch_size: 16\n"), batch=4)
    buckets = 'max_batch_size: 64\nparameters { key: "BUCKETS" value { string_value: "1,4,8" } }\n'
    onnx_models.classifier(add_model(repository, "bucketed", ONE_LINE + buckets))
    pixels = 'input { name: "pixels" data_type: TYPE_FP32 dims: [ 192 ] reshape { shape: [ 3, 8, 8 ] } }\n'
    onnx_models.classifier(add_model(repository, "reshaped", ONE_LINE + "max_batch_size: 4\n" + pixels))
    onnx_models.two_by_two(add_model(repository, "two_by_two"))
    onnx_models.identity(add_model(repository, "identity"))
    onnx_models.whole(add_model(repository, "whole"))
    # A delay, so that requests sent together are executed together.
    delay = "max_batch_size: 16\ndynamic_batching { max_queue_delay_microseconds: 300000 }\n"
    onnx_models.dynamic_width(add_model(repository, "dynamic_width", ONE_LINE + delay))
    onnx_models.slow(add_model(repository, "slow", ONE_LINE + "max_batch_size: 8\n"))
    with running(repositories=[repository], extra=["--log-verbose=0"]) as server:
        yield server


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    """The YOLOX service with the real YOLOX-nano."""
    with running(shared_model()) as server:
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., Serve]]:
    with contextlib.ExitStack() as stops:

        def run(*arguments: str | Path, **given: Any) -> Serve:
            serve = Serve(*arguments, **given)
            stops.callback(serve.stop)
            return serve

        yield run


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.classifier(tmp_path_factory.mktemp("model") / "classifier.onnx")


@pytest.fixture
def api_key_file(tmp_path: Path) -> Path:
    """A key for inference, which its owner alone can read."""
    file = tmp_path / "key"
    file.write_text("an-api-key-for-the-tests\n")
    file.chmod(0o600)
    return file
