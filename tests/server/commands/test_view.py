"""`pinstream view` in a real browser, on a real tritonserver."""

from __future__ import annotations

import base64
import colorsys
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pinstream_client import Detections, Detector
from tests.network import closed_port
from tests.server.commands.browser import chromium
from tests.server.commands.gate import Gate
from tests.server.running import Running

PATIENCE_S = 30
CODED = "Content-Encoding"
REFUSED_BODY = "the body is not what its Content-Encoding or its chunks say: send the image as it is"
# As the page draws: see page/stage.js.
GOLDEN_RATIO, LIGHTNESS, SATURATION = 0.6180339887, 0.52, 0.85


@contextlib.contextmanager
def viewing(url: str, metrics_url: str, *options: str) -> Iterator[str]:
    """`pinstream view` as a process of its own; gives host:port of the page, and checks that it stops clean."""
    command = [sys.executable, "-m", "pinstream_cli", "view", "-u", url, "--metrics-url", metrics_url, "--port", "0"]
    process = subprocess.Popen(
        [*command, "-t", "20", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("The page is at http://127.0.0.1:"), line + process.stderr.read()
        yield line.split()[4].removeprefix("http://").rstrip("/")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "Stopped.\n")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def gate(shapes: Running) -> Iterator[Gate]:
    with Gate(shapes.grpc_url) as gate:
        yield gate


@pytest.fixture(scope="module")
def page(shapes: Running, gate: Gate) -> Iterator[str]:
    with viewing(gate.url, shapes.metrics_url) as netloc:
        yield netloc


@pytest.fixture(scope="module")
def one_browser() -> Iterator[webdriver.Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(one_browser: webdriver.Chrome, page: str) -> Iterator[webdriver.Chrome]:
    """The page, freshly loaded, on a server that is ready; whatever the browser complained about fails the test."""
    one_browser.get(f"http://{page}/")
    until(one_browser, lambda: text(one_browser, "status") == "ready")
    yield one_browser
    log = one_browser.get_log("browser")  # type: ignore[no-untyped-call]
    complaints = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
    # While the server is down the page is answered 503, which the browser notes as well.
    assert [line for line in complaints if "503" not in line] == []


@pytest.fixture(scope="module")
def expected(shapes: Running, demo_picture: Path) -> Detections:
    with Detector(shapes.grpc_url, timeout=PATIENCE_S) as detector:
        return detector.detect(demo_picture, conf=0.25, iou=0.45)


def until(browser: webdriver.Chrome, condition: Callable[[], Any]) -> None:
    WebDriverWait(browser, PATIENCE_S, 0.05).until(lambda _: condition())


def at(browser: webdriver.Chrome, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def text(browser: webdriver.Chrome, name: str) -> str:
    return at(browser, name).text


def upload(browser: webdriver.Chrome, path: Path) -> None:
    at(browser, "file").send_keys(str(path))


def count(browser: webdriver.Chrome) -> int:
    """The count, once there is one."""
    until(browser, lambda: text(browser, "count").isdecimal())
    return int(text(browser, "count"))


def pixels(browser: webdriver.Chrome, places: list[tuple[float, float]]) -> list[list[int]]:
    """RGB of the canvas at places in the picture's own pixels."""
    script = """
        const canvas = document.getElementById("canvas");
        const scale = Number(canvas.dataset.scale);
        const context = canvas.getContext("2d");
        return arguments[0].map(([x, y]) => [...context.getImageData(x * scale, y * scale, 1, 1).data.slice(0, 3)]);
    """
    return list(browser.execute_script(script, places))


def test_a_picture_has_its_boxes_on_the_canvas_and_its_objects_in_the_list(
    browser: webdriver.Chrome, demo_picture: Path, expected: Detections
) -> None:
    upload(browser, demo_picture)
    assert count(browser) == len(expected) > 5
    until(browser, lambda: at(browser, "canvas").get_attribute("data-boxes") == str(len(expected)))
    # The left edge of each box has the class's colour, where no other box or label lies on it.
    places = [(float(item.box[0]), float(item.box[1] + item.box[3]) / 2) for item in expected]
    coloured = 0
    for item, found in zip(expected, pixels(browser, places), strict=True):
        hue = (item.class_id * GOLDEN_RATIO) % 1
        wanted = [255 * part for part in colorsys.hls_to_rgb(hue, LIGHTNESS, SATURATION)]
        coloured += max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 40
    assert coloured >= 0.8 * len(expected)
    rows = at(browser, "objects").find_elements(By.TAG_NAME, "button")
    assert [row.text.split("\n") for row in rows] == [[item.name, f"{item.score:.2f}"] for item in expected]
    assert f"{len(expected)} objects" in str(at(browser, "canvas").get_attribute("aria-label"))


def test_class_names_are_text_and_never_html(browser: webdriver.Chrome, demo_picture: Path) -> None:
    upload(browser, demo_picture)
    count(browser)
    names = [name.text for name in browser.find_elements(By.CSS_SELECTOR, "#objects .name")]
    assert "<b>ball</b>" in names  # as this service's label file has it
    assert browser.find_elements(By.CSS_SELECTOR, "#objects b") == []


def test_sliders_change_the_count_from_the_keyboard(
    browser: webdriver.Chrome, demo_picture: Path, expected: Detections
) -> None:
    upload(browser, demo_picture)
    usual = count(browser)
    at(browser, "conf").send_keys(Keys.HOME)
    until(browser, lambda: count(browser) > usual)
    at(browser, "iou").send_keys(Keys.END)
    until(browser, lambda: text(browser, "iou-value") == "1.00")
    until(browser, lambda: count(browser) > 2 * usual)
    at(browser, "conf").send_keys(Keys.END)
    until(browser, lambda: count(browser) < usual)
    assert at(browser, "canvas").get_attribute("data-boxes") == text(browser, "count")


def test_a_dropped_picture_is_taken_and_what_is_no_picture_is_refused(
    browser: webdriver.Chrome, demo_picture: Path, expected: Detections
) -> None:
    drop = """
        const [name, type, content] = arguments;
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
        const dropped = { dataTransfer: transfer, bubbles: true, cancelable: true };
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", dropped));
    """
    encoded = base64.b64encode(demo_picture.read_bytes()).decode()
    browser.execute_script(drop, "demo.jpg", "image/jpeg", encoded)
    assert count(browser) == len(expected)
    browser.execute_script(drop, "<i>.txt", "text/plain", "bm8=")
    until(browser, lambda: "cannot show <i>.txt" in text(browser, "problem"))
    assert count(browser) == len(expected)


def test_the_time_split_and_the_metrics_are_shown(browser: webdriver.Chrome, demo_picture: Path) -> None:
    upload(browser, demo_picture)
    count(browser)
    until(browser, lambda: "detector" in text(browser, "legend"))
    for step in ("waiting in queues", "preprocess", "postprocess", "between the steps"):
        assert step in text(browser, "legend")
    assert re.fullmatch(r"[\d.]+ ms, round trip [\d.]+ ms", text(browser, "round-trip"))
    assert at(browser, "round-trip").size["height"] < 1.5 * at(browser, "requests").size["height"]  # on one line
    until(browser, lambda: "requests failed" in text(browser, "metrics") and "CPU" in text(browser, "metrics"))
    assert "requests/s" in text(browser, "requests")


def test_a_server_that_goes_away_is_shown_and_its_return_as_well(
    browser: webdriver.Chrome, gate: Gate, demo_picture: Path, expected: Detections
) -> None:
    gate.shut()
    try:
        until(browser, lambda: text(browser, "status") == "not reachable")
        assert f"no Triton server answers at grpc://{gate.url}" in text(browser, "reason")
        upload(browser, demo_picture)
        until(browser, lambda: "is asked about as soon as the server is back" in text(browser, "problem"))
        assert text(browser, "count") == "-"
    finally:
        gate.open()
    until(browser, lambda: text(browser, "status") == "ready")
    assert not at(browser, "reason").is_displayed()
    # What was asked for meanwhile comes by itself.
    assert count(browser) == len(expected)
    assert not at(browser, "problem").is_displayed()


def test_the_camera_gives_one_frame_after_the_other_until_it_is_stopped(browser: webdriver.Chrome) -> None:
    def picture() -> object:
        return browser.execute_script('return document.getElementById("canvas").toDataURL()')

    at(browser, "camera").send_keys(Keys.ENTER)
    until(browser, lambda: "frames/s" in text(browser, "rate"))
    assert at(browser, "camera").text == "Stop the camera"
    count(browser)
    first = picture()
    until(browser, lambda: picture() != first)
    at(browser, "camera").send_keys(Keys.ENTER)
    until(browser, lambda: at(browser, "camera").text == "Use the camera" and text(browser, "rate") == "")


def ask(netloc: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and JSON (or text) of an answer."""
    connection = http.client.HTTPConnection(netloc, timeout=PATIENCE_S)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    is_json = "json" in (answer.getheader("Content-Type") or "")
    return answer.status, answer.headers, json.loads(content) if is_json else content


def test_other_sites_are_refused(page: str) -> None:
    port = page.partition(":")[2]
    for host in (page, f"localhost:{port}"):
        assert ask(page, "GET", "/api/state", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
        for path in ("/", "/api/state", "/page/app.js"):
            assert ask(page, "GET", path, Host=host)[0] == 403
    for origin in ("http://evil.example", "null", f"https://{page}", "http://127.0.0.1:1"):
        status, _, content = ask(page, "POST", "/api/detect", b"x", Origin=origin)
        assert (status, content) == (403, {"error": "only the page itself may ask"})


def test_every_answer_keeps_the_browser_to_the_pages_own_files(page: str) -> None:
    for path in ("/", "/page/app.js", "/api/state", "/no/such", "/page/../app.py"):
        status, headers, _ = ask(page, "GET", path)
        assert status == (404 if path in ("/no/such", "/page/../app.py") else 200)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    # What the policy would break anyway must not be in the page.
    content = ask(page, "GET", "/")[2]
    assert "style=" not in content
    assert "onclick" not in content
    assert "http" not in content


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/detect?conf=nan", b"x", 400, "expected a number from 0 to 1"),
        ("/api/detect?iou=2", b"x", 400, "iou is '2'"),
        ("/api/detect", b"", 400, "empty"),
        ("/api/detect", b"no picture", 400, "the server refused the request"),
        ("/api/detect", bytes(33 * 2**20), 413, "at most 32 MB"),
    ],
)
def test_a_wrong_request_is_one_line(page: str, path: str, body: bytes, status: int, words: str) -> None:
    found, _, content = ask(page, "POST", path, body)
    assert found == status
    assert words in content["error"]
    assert "\n" not in content["error"]


def test_the_page_is_there_before_the_server_is() -> None:
    with closed_port() as server, viewing(server, f"http://{server}/metrics") as page:
        _, _, state = ask(page, "GET", "/api/state")
        assert state["ready"] is False
        assert ask(page, "POST", "/api/detect", b"x")[0] == 503


def send(netloc: str, content: bytes) -> None:
    """Sends something and leaves, without waiting for an answer."""
    host, _, port = netloc.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(content.replace(b"HOST", netloc.encode()))
        time.sleep(0.2)


def test_what_clients_do_wrong_is_answered_and_not_logged() -> None:
    with closed_port() as server, viewing(server, f"http://{server}/metrics") as page:
        for encoding in ("gzip", "deflate"):
            status, _, content = ask(page, "POST", "/api/detect", b"no " + encoding.encode(), **{CODED: encoding})
            assert (status, content) == (400, {"error": REFUSED_BODY})
        for path in (f"/page/{'a' * 5000}", "/page/%00", "/page/", "/page/../app.py", f"/{'a/' * 2000}"):
            assert ask(page, "GET", path)[0] == 404
        upload = b"POST /api/detect HTTP/1.1\r\nHost: HOST\r\n"
        # An upload that breaks off, no HTTP, and a header that may be there once.
        send(page, upload + b"Content-Length: 30000000\r\n\r\n" + bytes(100_000))
        send(page, b"\x16\x03\x01")
        send(page, upload + b"Host: HOST\r\n\r\n")
        send(page, upload + b"Transfer-Encoding: chunked\r\n\r\nz\r\n")
        # That nothing is logged is what `viewing` looks at.
        assert ask(page, "GET", "/page/style.css")[0] == 200


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(page: str) -> None:
    command = [sys.executable, "-m", "pinstream_cli", "view", "--port", page.partition(":")[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on {page} (")
    assert done.stderr.count("\n") == 1
