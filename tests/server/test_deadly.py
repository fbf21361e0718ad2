"""One HTTP request ends Triton 2.51, as docs/security.md says: `serve --restart` brings it back, a key keeps it out."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.fuzz.deadly import is_deadly, nested_data, shape_beyond_memory, small_chunks
from tests.server.serve_process import Serve, ready
from tests.server.test_restart import seconds_until

MODEL = "/v2/models/classifier"
DEADLY: tuple[Callable[[], bytes | Iterable[bytes]], ...] = (
    lambda: nested_data("pixels", 60_000),
    lambda: shape_beyond_memory("pixels"),
    small_chunks,
)


def post(serve: Serve, body: bytes | Iterable[bytes]) -> int:
    """The status of the answer; 0 where there is none. Of bytes in pieces the framing is theirs."""
    whole = isinstance(body, bytes)
    kind = {} if whole else {"Transfer-Encoding": "chunked"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", serve.endpoints.http, timeout=60)) as connection:
        try:
            connection.request("POST", f"{MODEL}/infer", body, {"Content-Type": "application/json", **kind})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def test_what_ends_triton_is_known_and_it_comes_back(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--restart")
    for number, make in enumerate(DEADLY, 1):
        serve.wait_for("Stop with Ctrl-C")
        seconds_until(lambda: ready(serve.endpoints, f"{MODEL}/ready"), 60)
        assert post(serve, make()) == 0, "Triton survives it: docs/security.md and tests/fuzz/deadly.py say it does not"
        seconds_until(lambda number=number: serve.text.count("RESTART") == number, 10)  # type: ignore[misc]
    seconds_until(lambda: ready(serve.endpoints, f"{MODEL}/ready"), 60)


def test_who_has_no_key_is_refused_before_the_body_is_read(
    start: Callable[..., Serve], classifier: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("an-api-key-for-the-tests\n")
    key.chmod(0o600)
    serve = start("--model", classifier, "--api-key-file", key)
    serve.wait_for("Stop with Ctrl-C")
    assert [post(serve, make()) for make in DEADLY] == [403] * len(DEADLY)
    assert serve.process.poll() is None


def test_the_fuzzer_leaves_out_what_is_known() -> None:
    assert is_deadly(nested_data("x", 200_000))
    assert is_deadly(shape_beyond_memory("x"))
    assert not is_deadly(nested_data("x", 1000))
    assert not is_deadly(b'{"shape": [-1, 2], "shape": [], "shape": [1, 3, 8, 8]}')
