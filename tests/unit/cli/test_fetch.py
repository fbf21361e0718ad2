"""`pinstream fetch` against a real HTTP server: ranges, connections that break, wrong and changed content."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from pinstream_cli.fetch import MODELS
from pinstream_cli.main import main
from tests.network import closed_port
from tests.yolox_exports import Export, save_classifier


@dataclass
class Release:
    """What the server has, and how it behaves.

    Attributes:
        files: Content by name.
        break_after: The bytes that each of the next answers gives before its connection breaks.
        ranges: Whether parts can be asked for.
        requested: The Range header of every request, or "".
        etag: Sent with every answer; None for the SHA-256 of the file.
    """

    files: dict[str, bytes]
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    requested: list[str] = field(default_factory=list)
    etag: str | None = None
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers as a file server does, or breaks off in the middle."""

    release: Release

    def do_GET(self) -> None:
        release = self.release
        release.requested.append(self.headers.get("Range", ""))
        content = release.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()}"' if release.etag is None else release.etag
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and release.ranges:
            start = int(asked[1]) if self.headers.get("If-Range") == tag else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        limit = release.break_after.pop(0) if release.break_after else len(content)
        self.wfile.write(content[start : start + limit])

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


def official(**changed: int | tuple[int, int]) -> bytes:
    """An export with the contract of YOLOX-nano, as large as that: most of its weights have no use."""
    model = Export(**{"size": (416, 416), "classes": 80, **changed}).model()  # type: ignore[arg-type]
    padding = np.random.default_rng(0).random(900_000, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(padding, "padding"))
    return bytes(model.SerializeToString())


NANO = official()


@pytest.fixture
def release() -> Iterator[Release]:
    served = Release({"yolox_nano.onnx": NANO})
    handler = type("ReleaseHandler", (Handler,), {"release": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}/releases/1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models"


def fetch(release: Release, out: Path, model: str = "yolox-nano") -> Result:
    return CliRunner().invoke(main, ["fetch", model, "-o", str(out)], env={"PINSTREAM_FETCH_URL": release.url})


def fetched(release: Release, out: Path) -> bytes:
    """Fetches, which has to work; the content."""
    result = fetch(release, out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "yolox_nano.onnx")
    assert [path.name for path in out.iterdir()] == ["yolox_nano.onnx"], "leaves nothing beside it"
    return (out / "yolox_nano.onnx").read_bytes()


def refused(release: Release, out: Path, model: str = "yolox-nano") -> str:
    """Fetches, which has to fail with one line and exit code 2, and no model in its place."""
    before = {path: path.read_bytes() for path in out.glob("*.onnx")}
    result = fetch(release, out, model)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert {path: path.read_bytes() for path in out.glob("*.onnx")} == before
    return line


def test_fetches_a_model_and_notes_its_sum(release: Release, out: Path, cache: Path) -> None:
    assert fetched(release, out) == NANO
    noted = (cache / "pinstream" / "fetched" / "yolox_nano.onnx.sha256").read_text()
    assert noted == f"{hashlib.sha256(NANO).hexdigest()}  yolox_nano.onnx\n"


def test_a_model_that_is_there_is_not_fetched_again(release: Release, out: Path) -> None:
    fetched(release, out)
    release.files.clear()
    result = fetch(release, out)
    assert result.exit_code == 0
    assert "is there already" in result.stderr
    assert len(release.requested) == 1


def test_goes_on_by_itself_where_the_connection_broke(release: Release, out: Path) -> None:
    release.break_after = [1_000_000, 1_500_000]
    assert fetched(release, out) == NANO
    assert release.requested == ["", "bytes=1000000-", "bytes=2500000-"]


def test_goes_on_where_an_earlier_call_broke_off(release: Release, out: Path) -> None:
    release.break_after = [1_000_000, 500_000, 0]
    line = refused(release, out)
    assert "the connection broke after 1.5 MB" in line
    assert "run the same command again" in line
    release.requested.clear()
    assert fetched(release, out) == NANO
    assert release.requested == ["bytes=1500000-"]


def test_begins_anew_where_the_server_knows_no_ranges(release: Release, out: Path) -> None:
    release.ranges, release.break_after = False, [1_000_000]
    assert fetched(release, out) == NANO


def test_begins_anew_where_a_weak_etag_promises_nothing(release: Release, out: Path) -> None:
    release.etag, release.break_after = 'W/"1"', [1_000_000]
    assert fetched(release, out) == NANO
    assert release.requested == ["", ""]


def test_never_joins_parts_of_two_files(release: Release, out: Path) -> None:
    release.break_after = [1_000_000, 0]
    refused(release, out)
    other = official(seed=1)
    release.files["yolox_nano.onnx"] = other
    assert fetched(release, out) == other


def test_a_part_that_was_complete_is_used(release: Release, out: Path) -> None:
    out.mkdir()
    (out / ".yolox_nano.onnx.part").write_bytes(NANO)
    (out / ".yolox_nano.onnx.part.etag").write_text(f'"{hashlib.sha256(NANO).hexdigest()}"')
    assert fetched(release, out) == NANO
    assert release.requested == [f"bytes={len(NANO)}-"]


def test_changed_content_is_refused(release: Release, out: Path, cache: Path) -> None:
    fetched(release, out)
    (out / "yolox_nano.onnx").unlink()
    release.files["yolox_nano.onnx"] = official(seed=1)
    line = refused(release, out)
    record = cache / "pinstream" / "fetched" / "yolox_nano.onnx.sha256"
    for text in (hashlib.sha256(NANO).hexdigest(), hashlib.sha256(official(seed=1)).hexdigest(), str(record)):
        assert text in line
    record.unlink()
    assert fetched(release, out) == official(seed=1)


def test_a_file_that_was_tampered_with_is_not_vouched_for(release: Release, out: Path) -> None:
    fetched(release, out)
    (out / "yolox_nano.onnx").write_bytes(NANO[:-1] + b"x")
    assert "the first download had" in refused(release, out)


def test_a_file_of_other_origin_is_left_alone(release: Release, out: Path) -> None:
    out.mkdir()
    (out / "yolox_nano.onnx").write_bytes(b"mine")
    assert "was not downloaded by this command" in refused(release, out)


def test_a_page_instead_of_a_model_is_refused_by_its_size(release: Release, out: Path) -> None:
    release.files["yolox_nano.onnx"] = b"<html>please log in</html>"
    assert "has 26 bytes, expected 3,276,000 to 4,004,000" in refused(release, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00" * len(NANO), "not an ONNX model"),
        (official(classes=3), "416 x 416 pixels and 3 classes; expected 416 x 416 and 80"),
        (official(size=(320, 416)), "for 320 x 416 pixels and 80 classes"),
    ],
)
def test_something_else_of_the_right_size_is_refused(release: Release, out: Path, content: bytes, said: str) -> None:
    release.files["yolox_nano.onnx"] = content
    line = refused(release, out)
    assert said in line
    assert release.url in line, "the file that was looked at is gone"
    assert not list(out.iterdir())


def test_a_model_that_is_no_yolox_is_refused(release: Release, out: Path, tmp_path: Path) -> None:
    model = onnx.load(str(save_classifier(tmp_path / "classifier.onnx")))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(900_000, np.float32), "padding"))
    release.files["yolox_nano.onnx"] = model.SerializeToString()
    assert "not a YOLOX export" in refused(release, out)


def test_a_file_that_is_not_there_is_one_line(release: Release, out: Path) -> None:
    assert f"{release.url}/yolox_x.onnx: the server answers 404" in refused(release, out, "yolox-x")


def test_without_a_network_the_built_in_model_is_named(out: Path) -> None:
    with closed_port() as netloc:
        line = refused(Release({}, url=f"http://{netloc}"), out)
    assert f"http://{netloc}/yolox_nano.onnx cannot be reached (Connection refused)" in line
    assert "pinstream demo" in line
    named = re.search(r"serve --model (\S+) --labels (\S+)`", line)
    assert named is not None
    assert Path(named[1]).is_file()
    assert Path(named[2]).is_file()


def test_an_address_that_is_none_is_one_line(out: Path) -> None:
    assert "expected an address that begins with https://" in refused(Release({}, url="file:///etc"), out)


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(main, ["fetch", "yolox-q"])
    assert result.exit_code == 2
    for name in MODELS:
        assert name in result.stderr
