"""The YOLOX service on a real Triton, whose pictures the detector reads where the first step left them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pinstream.references import HEADER, REFERENCE, ROW, ROWS_AT
from pinstream.tensors import Array
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.triton.install import find_triton
from pinstream_cli.yolox_service import build_service
from tests.places import regions, taken
from tests.server.running import Running, running
from tests.server.serve_process import SHM, Serve, left_behind
from tests.server.test_leftovers import wait_until
from tests.server.test_plain_models import infer, together
from tests.server.test_restart import stubs_of
from tests.yolox_exports import Export

ROOT = Path(__file__).parents[2]
ANSWERS = ["num_dets", "det_boxes", "det_scores", "det_classes"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Export(size=(96, 160)).save(tmp_path_factory.mktemp("small") / "small.onnx")


@pytest.fixture(scope="module")
def small(export: Path) -> Iterator[Running]:
    """The service with a small network, with places for 40 MB of pictures at the most."""
    with running(export) as server:
        yield server
        prefix = server.server.shm_prefix
    assert not list(SHM.glob(f"{prefix}*"))


def picture(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (60 + seed % 7, 100, 3), dtype=np.uint8)
    done, data = cv2.imencode(".png", image)
    assert done
    return bytes(data)


def pictures(items: int, seed: int = 0) -> Array:
    return np.array([[picture(seed + i)] for i in range(items)], object)


def detected(server: Any, images: Array) -> dict[str, Array]:
    """What the ensemble answers."""
    result = infer(server, "yolox", outputs=ANSWERS, image=images)
    return {name: result.as_numpy(name) for name in ANSWERS}


def referred(server: Any, images: Array) -> tuple[Array, Array]:
    """References to pictures that nobody has read, and their letterbox."""
    result = infer(server, "yolox_preprocess", outputs=["images_at", "letterbox"], image=images)
    return result.as_numpy("images_at"), result.as_numpy("letterbox")


def candidates(server: Any, **inputs: Any) -> Array:
    return np.asarray(infer(server, "yolox_detector", **inputs).as_numpy("candidates"))


def by_value(server: Any, images: Array) -> dict[str, Array]:
    """What the three steps answer where the pictures go through Triton."""
    first = infer(server, "yolox_preprocess", outputs=["images", "letterbox"], image=images)
    found = candidates(server, images=first.as_numpy("images"))
    result = infer(
        server, "yolox_postprocess", outputs=ANSWERS, candidates=found, letterbox=first.as_numpy("letterbox")
    )
    return {name: result.as_numpy(name) for name in ANSWERS}


def assert_equal(got: dict[str, Array], expected: dict[str, Array]) -> None:
    for name in ANSWERS:
        np.testing.assert_array_equal(got[name], expected[name])


def refused(server: Any, status: str, match: str | None, **inputs: Any) -> None:
    with pytest.raises(InferenceServerException, match=match) as caught:
        infer(server, "yolox_detector", **inputs)
    assert caught.value.status() == f"StatusCode.{status}"
    assert "Traceback" not in str(caught.value)


def is_free(server: Running) -> bool:
    return taken(server.server.shm_prefix) == 0


@pytest.mark.parametrize("items", [1, 2, 31, 32])
def test_answers_are_the_same_by_reference_and_by_value(small: Running, items: int) -> None:
    images = pictures(items)
    expected = by_value(small, images)
    assert expected["num_dets"].any()
    for _ in range(3):
        assert_equal(detected(small, images), expected)
    wait_until(lambda: is_free(small), 5)


def newest(server: Running) -> float:
    """When a place was last filled."""
    return max(
        float(np.frombuffer(path.read_bytes()[ROWS_AT:HEADER], ROW)["filled"].max())
        for path in regions(server.server.shm_prefix)
    )


def test_the_ensemble_sends_its_pictures_so(small: Running) -> None:
    images = pictures(3)
    before = newest(small)
    by_value(small, images)
    assert newest(small) == before
    detected(small, images)
    assert newest(small) > before


def test_nobody_else_opens_the_regions(small: Running) -> None:
    found = regions(small.server.shm_prefix)
    assert found
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_a_reference_is_read_once_and_where_the_picture_lies(small: Running) -> None:
    images = pictures(3)
    at, letterbox = referred(small, images)
    assert at.dtype == np.uint8
    assert (at.shape, letterbox.shape) == ((3, REFERENCE.size), (3, 3))
    assert taken(small.server.shm_prefix) == 3
    found = candidates(small, images_at=at)
    wait_until(lambda: is_free(small), 5)
    value = infer(small, "yolox_preprocess", outputs=["images"], image=images).as_numpy("images")
    np.testing.assert_array_equal(found, candidates(small, images=value))
    refused(small, "UNAVAILABLE", "not there any more.*send the request again", images_at=at)


def test_what_lies_there_is_what_is_computed(small: Running) -> None:
    """Not what went through Triton as well."""
    at, _ = referred(small, pictures(1))
    _, first, nbytes, token, _ = REFERENCE.unpack(at.tobytes())
    for path in regions(small.server.shm_prefix):
        rows = np.frombuffer(path.read_bytes()[ROWS_AT:HEADER], ROW)
        if rows["token"][first].tobytes() == token:
            with path.open("r+b") as file:
                file.seek(HEADER + first * nbytes)
                file.write(bytes([100]) * nbytes)
    grey = np.full((1, 96, 160, 3), 100, np.uint8)
    np.testing.assert_array_equal(candidates(small, images_at=at), candidates(small, images=grey))


def test_the_bytes_themselves_are_taken(small: Running) -> None:
    images = infer(small, "yolox_preprocess", outputs=["images"], image=pictures(5)).as_numpy("images")
    np.testing.assert_array_equal(candidates(small, images_at=images.reshape(5, -1)), candidates(small, images=images))


@pytest.mark.parametrize("wanted", [["letterbox"], ["images"], ["images_at", "images"], ["images", "letterbox"]])
def test_nothing_is_left_of_which_nobody_is_told(small: Running, wanted: list[str]) -> None:
    wait_until(lambda: is_free(small), 5)
    result = infer(small, "yolox_preprocess", outputs=wanted, image=pictures(2))
    assert is_free(small)
    if "images_at" in wanted:
        images = result.as_numpy("images")
        np.testing.assert_array_equal(result.as_numpy("images_at"), images.reshape(2, -1))


def test_a_picture_that_is_none_leaves_nothing(small: Running) -> None:
    wait_until(lambda: is_free(small), 5)
    for images in (np.array([[b"none"]], object), np.array([[picture(1)], [b"none"], [picture(2)]], object)):
        with pytest.raises(InferenceServerException, match="no image"):
            referred(small, images)
        assert is_free(small)


def test_perf_analyzer_measures_the_detector_as_compose_has_it(small: Running, tmp_path: Path) -> None:
    found = re.search(r"- >-\n((?: {8}.*\n)+)", (ROOT / "docker-compose.yml").read_text())
    assert found
    try:
        analyzer = " ".join(find_perf_analyzer(print).command)
    except CommandError as error:
        pytest.skip(str(error))
    script = " ".join(found[1].split()).replace("exec perf_analyzer", f"exec {analyzer}")
    script = script.replace("--concurrency-range=1:64:8", "-p 500 -s 999 -r 3")
    for there, here in {
        "/one_picture.py": str(ROOT / "deploy/one_picture.py"),
        "/tmp/one_picture.json": str(tmp_path / "picture.json"),
        "localhost:8000": small.http_url,
        "localhost:8001": small.grpc_url,
    }.items():
        script = re.sub(rf"(?<=\s){there}|(?<=//){there}", here, script)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert "Concurrency: 1, throughput:" in done.stdout, done.stdout + done.stderr


def test_what_is_refused_is_written_to_nobody_elses_places(small: Running) -> None:
    """While one picture of a request turns out to be none, another is still being decoded."""
    noise = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), dtype=np.uint8)
    done, large = cv2.imencode(".png", noise)
    assert done
    images = pictures(4)
    expected = candidates(small, images=infer(small, "yolox_preprocess", ["images"], image=images).as_numpy("images"))
    for _ in range(2):  # as many as there are instances
        with pytest.raises(InferenceServerException, match=r"image 0 of 2.*no image"):
            detected(small, np.array([[b"none"], [large.tobytes()]], object))
    at = [referred(small, images)[0] for _ in range(4)]
    time.sleep(2)
    for one in at:
        np.testing.assert_array_equal(candidates(small, images_at=one), expected)


def test_many_at_once_get_their_own(small: Running) -> None:
    sizes = [1, 2, 3, 5, 8, 13, 21, 32, 1, 1, 4, 7]
    asked = [pictures(n, seed=100 * i) for i, n in enumerate(sizes)]
    expected = [by_value(small, images) for images in asked]

    def several(i: int) -> list[dict[str, Array]]:
        return [detected(small, asked[i]) for _ in range(6)]

    for i, answers in enumerate(together([lambda i=i: several(i) for i in range(len(sizes))])):
        assert isinstance(answers, list), answers
        for answer in answers:
            assert_equal(answer, expected[i])
    wait_until(lambda: is_free(small), 5)
    # As many as there can be, and those that found no place went through Triton.
    assert all(path.stat().st_size <= HEADER + 32 * 96 * 160 * 3 for path in regions(small.server.shm_prefix))


def test_without_a_free_place_pictures_go_through_triton(small: Running) -> None:
    images = pictures(32)
    expected = by_value(small, images)
    held = []
    while (at := referred(small, images)[0]).shape[1] == REFERENCE.size:
        held.append(at)
        assert len(held) <= 64
    assert at.shape == (32, 96 * 160 * 3)
    assert_equal(detected(small, images), expected)
    for at in held:
        candidates(small, images_at=at)
    wait_until(lambda: is_free(small), 5)


def forged() -> dict[str, tuple[Array, str, str]]:
    wrong = np.full((1, REFERENCE.size), 7, np.uint8)
    elsewhere = REFERENCE.pack(b"PINSREF1", 0, 96 * 160 * 3, b"x" * 16, b"y" * 32)
    behind = REFERENCE.pack(b"PINSREF1", 1 << 60, 96 * 160 * 3, b"x" * 16, b"y" * 32)
    return {
        "no mark": (wrong, "INVALID_ARGUMENT", "holds no references"),
        "no region": (np.frombuffer(elsewhere, np.uint8)[None], "UNAVAILABLE", "not there any more"),
        "no place": (np.frombuffer(behind, np.uint8)[None], "INVALID_ARGUMENT", "holds no references"),
        "short": (wrong[:, :-1].copy(), "INVALID_ARGUMENT", r"has shape \[1, 71\]"),
        "empty": (wrong[:, :0].copy(), "INVALID_ARGUMENT", "images_at"),
    }


@pytest.mark.parametrize("kind", forged())
def test_forged_references_are_refused_and_cost_their_neighbours_nothing(small: Running, kind: str) -> None:
    at, status, match = forged()[kind]
    images = pictures(2)
    expected = by_value(small, images)
    calls: list[Callable[[], Any]] = [lambda: detected(small, images) for _ in range(6)]
    calls += [lambda: refused(small, status, match, images_at=at) for _ in range(6)]
    outcomes = together(calls)
    assert outcomes[6:] == [None] * 6
    for outcome in outcomes[:6]:
        assert isinstance(outcome, dict), outcome
        assert_equal(outcome, expected)


@pytest.mark.parametrize("change", [0, 8, 24, 40], ids=["mark", "number", "token", "region"])
def test_a_reference_that_was_changed_reads_nothing(small: Running, change: int) -> None:
    at, _ = referred(small, pictures(1))
    other = at.copy()
    other[0, change] ^= 1
    with pytest.raises(InferenceServerException) as caught:
        candidates(small, images_at=other)
    assert caught.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.INVALID_ARGUMENT")
    assert candidates(small, images_at=at).shape == (1, 300, 6)


def test_one_of_both_is_to_be_sent(small: Running) -> None:
    at, _ = referred(small, pictures(1))
    images = np.zeros((1, 96, 160, 3), np.uint8)
    refused(small, "INVALID_ARGUMENT", "both 'images' and 'images_at'; send one of them", images=images, images_at=at)
    candidates(small, images_at=at)


def test_one_of_both_has_to_be_sent(small: Running) -> None:
    refused(small, "INVALID_ARGUMENT", "request has 0 inputs")
    candidates(small, images=np.zeros((1, 96, 160, 3), np.uint8))


@pytest.mark.parametrize("items", [0, 33])
def test_too_few_and_too_many_are_refused(small: Running, items: int) -> None:
    refused(small, "INVALID_ARGUMENT", None, images_at=np.zeros((items, REFERENCE.size), np.uint8))
    refused(small, "INVALID_ARGUMENT", None, images_at=np.zeros((items, 96 * 160 * 3), np.uint8))


def first_steps(serve: Serve) -> list[int]:
    """Processes of the instances of yolox_preprocess."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in stubs_of(serve)}
    return [pid for pid, command in commands.items() if "/yolox_preprocess/" in command]


def regions_left(serve: Serve) -> list[Path]:
    return [path for path in left_behind(serve) if path.name.endswith("_places")]


def test_a_killed_first_step_comes_back_and_nothing_stays(start: Callable[..., Serve], export: Path) -> None:
    serve = start("--restart", "--model", export)
    serve.wait_for("Stop with Ctrl-C")
    images = pictures(4)
    expected = by_value(serve, images)
    done = threading.Event()
    outcomes: list[Any] = []

    def ask() -> None:
        while not done.is_set():
            try:
                outcomes.append(detected(serve, images))
            except InferenceServerException as error:
                outcomes.append(error)
                done.wait(0.1)

    def since(start: int, kind: type) -> bool:
        """Whether as many as are under way, and more, were answered so one after the other, since so many were."""
        return len(outcomes) > start + 20 and all(isinstance(outcome, kind) for outcome in outcomes[-20:])

    def wait_for(kind: type) -> None:
        start = len(outcomes)
        wait_until(lambda: since(start, kind), 60)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        wait_for(dict)
        for _ in range(2):
            os.kill(first_steps(serve)[0], signal.SIGKILL)
            wait_for(InferenceServerException)
            wait_for(dict)
    finally:
        done.set()
        for asker in askers:
            asker.join()
    for outcome in outcomes:
        if isinstance(outcome, dict):
            assert_equal(outcome, expected)
    assert len(regions_left(serve)) == len(first_steps(serve))
    os.kill(first_steps(serve)[0], signal.SIGKILL)
    serve.stop()
    assert not left_behind(serve)


def test_what_tritons_cache_answers_has_no_references(tmp_path: Path, export: Path) -> None:
    caches = find_triton().binary.parents[1] / "caches"
    repository = tmp_path / "cached"
    shutil.copytree(service_repository(), repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(repository / "yolox_detector" / "1")
    build_service(export, repository / "yolox_detector" / "1")
    with (repository / "yolox_preprocess" / "config.pbtxt").open("a") as config:
        config.write("response_cache { enable: true }\n")
    extra = [f"--cache-directory={caches}", "--cache-config=local,size=10000000"]
    with running(repositories=[repository], extra=extra) as server:
        expected = detected(server, pictures(1))
        assert_equal(detected(server, pictures(1)), expected)
