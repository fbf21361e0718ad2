"""What `serve` completes itself is what the backend completes when Triton asks it to."""

from __future__ import annotations

from pathlib import Path

from pinstream_cli.triton import Access
from pinstream_cli.triton.completion import COMPLETE, complete_model
from pinstream_cli.triton.repository import read_model
from tests import onnx_models
from tests.server.conftest import ONE_LINE, add_model
from tests.server.running import Running, running
from tests.server.test_plain_models import configuration


def command_line(server: Running) -> list[str]:
    """How the tritonserver of a test was started."""
    return Path(f"/proc/{server.server.pid}/cmdline").read_text().split("\0")


def test_a_configuration_is_completed_as_triton_has_it_completed(tmp_path: Path) -> None:
    onnx_models.classifier(add_model(tmp_path, "dynamic"))
    onnx_models.classifier(add_model(tmp_path, "static"), batch=4)
    onnx_models.classifier(add_model(tmp_path, "narrow", ONE_LINE + "max_batch_size: 4\n"))
    onnx_models.two_by_two(add_model(tmp_path, "two_by_two"))
    onnx_models.whole(add_model(tmp_path, "unbatched"))
    onnx_models.dynamic_width(add_model(tmp_path, "width", ONE_LINE + "sequence_batching { }\n"))
    with running(repositories=[tmp_path]) as server:
        assert COMPLETE not in command_line(server)
        for path in tmp_path.iterdir():
            expected = configuration(server, path.name)
            assert complete_model(path) is not None
            got = read_model(path).config
            assert list(got.input) == list(expected.input)
            assert list(got.output) == list(expected.output)
            assert got.max_batch_size == expected.max_batch_size
            assert got.WhichOneof("scheduling_choice") == expected.WhichOneof("scheduling_choice")


def test_triton_is_not_asked_to_complete_what_is_complete(tmp_path: Path) -> None:
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    with running(onnx, access=Access()) as server:
        assert COMPLETE in command_line(server)
        assert configuration(server, "classifier").input[0].name == "pixels"


def test_models_may_lack_something_where_more_of_them_may_be_loaded(tmp_path: Path) -> None:
    onnx = onnx_models.classifier(tmp_path / "classifier.onnx")
    with running(onnx, access=Access(control=True)) as server:
        assert COMPLETE not in command_line(server)
    onnx_models.classifier(add_model(tmp_path / "repository", "other"))
    with running(onnx, repositories=[tmp_path / "repository"], access=Access()) as server:
        assert COMPLETE not in command_line(server)
        assert configuration(server, "other").input[0].name == "pixels"


def test_what_cannot_be_completed_is_left_to_triton(tmp_path: Path) -> None:
    add_model(tmp_path, "broken").write_bytes(b"\x08\x07\x12 no model")
    before = (tmp_path / "broken" / "config.pbtxt").read_text()
    assert complete_model(tmp_path / "broken") is None
    assert (tmp_path / "broken" / "config.pbtxt").read_text() == before
