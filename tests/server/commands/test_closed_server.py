"""`pinstream detect`, `pinstream view` and `pinstream eval` with a server that asks for a key."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pinstream_cli.main import main
from pinstream_cli.triton.access import Access, Tls
from tests.certificates import authority, signed
from tests.server.commands.test_view import viewing
from tests.server.running import Running, running

KEY = "k" * 32


@pytest.fixture(scope="module")
def closed(shapes_model: Path) -> Iterator[Running]:
    """A server that wants a key from everybody."""
    with running(shapes_model, access=Access(api_key=KEY)) as server:
        yield server


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    return file


def detect(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["detect", "-t", "60", *map(str, arguments)])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_key_and_headers_let_detect_in(closed: Running, protocol: str, key_file: Path, demo_picture: Path) -> None:
    url = closed.grpc_url if protocol == "grpc" else closed.http_url
    refused = detect(demo_picture, "-i", protocol, "-u", url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "refused access" in refused.stderr
    assert "--api-key-file FILE" in refused.stderr
    for ways in (["--api-key-file", key_file], ["-H", f"pinstream-key: {KEY}"]):
        name = ways[1]
        if protocol == "grpc" and ways[0] == "-H":
            ways = ["-H", "x-team:vision", "-H", f"triton-grpc-protocol-{name}"]
        found = detect(demo_picture, "-i", protocol, "-u", url, "--json", *ways)
        assert found.exit_code == 0, found.stderr
        assert len(json.loads(found.stdout)["images"][0]["detections"]) > 5


def test_key_lets_the_page_in(closed: Running, key_file: Path, demo_picture: Path) -> None:
    with viewing(closed.http_url, closed.metrics_url, "-i", "http", "--api-key-file", str(key_file)) as netloc:
        deadline = time.monotonic() + 30
        while not json.load(urllib.request.urlopen(f"http://{netloc}/api/state"))["ready"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        request = urllib.request.Request(f"http://{netloc}/api/detect", demo_picture.read_bytes())
        assert len(json.load(urllib.request.urlopen(request))["detections"]) > 5


def test_key_lets_eval_in(closed: Running, key_file: Path, demo_picture: Path) -> None:
    annotations = {
        "images": [{"id": 1, "file_name": demo_picture.name}],
        "categories": [{"id": 1, "name": "cube"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}],
    }
    file = key_file.with_name("annotations.json")
    file.write_text(json.dumps(annotations))
    of_picture = ["--annotations", str(file), "--images", str(demo_picture.parent), "-i", "http", "-u", closed.http_url]
    refused = CliRunner().invoke(main, ["eval", *of_picture])
    assert refused.exit_code == 2
    assert "--api-key-file FILE" in refused.stderr
    let_in = CliRunner().invoke(main, ["eval", *of_picture, "--api-key-file", str(key_file)])
    assert let_in.exit_code == 0, let_in.stderr
    assert "1 images in" in let_in.stdout


def test_the_page_says_how_to_get_in(closed: Running, demo_picture: Path) -> None:
    with viewing(closed.http_url, closed.metrics_url, "-i", "http") as netloc:
        request = urllib.request.Request(f"http://{netloc}/api/detect", demo_picture.read_bytes())
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert "--api-key-file FILE" in json.load(caught.value)["error"]


def test_key_that_others_can_read_is_refused(key_file: Path) -> None:
    key_file.chmod(0o644)
    result = detect("dog.jpg", "--api-key-file", key_file)
    assert result.exit_code == 2
    assert "can be read by others" in result.stderr


def test_certificates_let_detect_in(shapes_model: Path, tmp_path: Path, demo_picture: Path) -> None:
    ours = authority(tmp_path, "ours")
    of_server, of_client = (signed(tmp_path, name, ours) for name in ("server", "client"))
    access = Access(Tls(of_server.cert, of_server.key, client_ca=ours.cert))
    with running(shapes_model, access=access) as server:
        place = (demo_picture, "-u", server.grpc_url, "--json")
        trusting = ("--tls-ca", ours.cert)
        assert detect(*place, "-t", "2").exit_code == 2
        assert detect(*place, "-t", "2", *trusting).exit_code == 2  # it wants to know who is there
        found = detect(*place, *trusting, "--tls-cert", of_client.cert, "--tls-key", of_client.key)
        assert found.exit_code == 0, found.stderr
        assert len(json.loads(found.stdout)["images"][0]["detections"]) > 5
