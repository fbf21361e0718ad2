"""`pinstream doctor` on the repository of the YOLOX service: what keeps a server from starting is found before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.yolox_service import build_service
from tests.unit.cli.test_doctor import report
from tests.yolox_exports import Export
from yolox_steps.places import MOST

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service as its README has one make it: the repository, and a small detector in its place."""
    base = tmp_path_factory.mktemp("service")
    shutil.copytree(service_repository(), base / "repository")
    build_service(Export(batch=None).save(base / "small.onnx"), base / "repository" / "yolox_detector" / "1")
    return base / "repository"


@pytest.fixture
def service(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "repository"))


def replaced(file: str, old: str, new: str) -> Damage:
    def damage(service: Path) -> None:
        path = service / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def removed(file: str) -> Damage:
    return lambda service: (service / file).unlink()


VERIFY = 'parameters { key: "VERIFY" value { string_value: "true" } }\n'


def test_the_service_is_sound(sound: Path) -> None:
    code, checks = report("--model-repository", sound)
    assert code == 0, [check for check in checks.values() if check["status"] == "FIX"]
    assert checks["model yolox_preprocess", "detector"]["found"].startswith("yolox_detector, 64 x 64")
    assert checks["model yolox_preprocess", "warmup/image"]["status"] == "OK"
    assert checks["model yolox_postprocess", "1/model.py code"]["status"] == "OK"
    assert checks["model yolox_detector", "1/ permissions"]["found"] == "only root and this user can write"
    # 64 x 64 x 3 bytes a picture, as many as the step that leaves them there has places for.
    places = [name for _, name in checks if name.startswith("/dev/shm for places of ")]
    assert places == ["/dev/shm for places of yolox_preprocess"]
    assert checks["machine", places[0]]["found"].startswith(f"up to 2 x {MOST} x 12.0 KiB = 768.0 KiB more")


@pytest.mark.parametrize(
    ("damage", "area", "name", "words"),
    [
        (removed("yolox_detector/1/model.json"), "yolox_preprocess", "detector", "does not exist"),
        (removed("yolox_preprocess/warmup/image"), "yolox_preprocess", "warmup/image", "is not there"),
        (
            replaced("yolox_preprocess/config.pbtxt", '"67108864"', '"many"'),
            "yolox_preprocess",
            "parameters",
            "MAX_IMAGE_PIXELS in config.pbtxt: expected a whole number above 0, found 'many'",
        ),
        (
            replaced("yolox_preprocess/config.pbtxt", 'string_value: "false"', 'string_value: "maybe"'),
            "yolox_preprocess",
            "parameters",
            "REDUCED_DECODING",
        ),
        (
            replaced("yolox_postprocess/config.pbtxt", '"0.45"', '"45"'),
            "yolox_postprocess",
            "parameters",
            "parameter IOU",
        ),
        (
            replaced("yolox_postprocess/1/model.py", "def initialize(self", "def initialize(self,,"),
            "yolox_postprocess",
            "1/model.py code",
            "line ",
        ),
        (
            replaced("yolox_postprocess/config.pbtxt", '"yolox_detector"', '"another"'),
            "yolox_postprocess",
            "detector",
            "another/1/model.json",
        ),
        (
            replaced(
                "yolox/config.pbtxt",
                "output [\n",
                'output [\n  { name: "images_at", data_type: TYPE_UINT8, dims: [ -1 ] },\n',
            ),
            "yolox",
            "steps",
            "images_at refers to what yolox_detector reads once",
        ),
    ],
)
def test_what_keeps_a_step_from_loading(service: Path, damage: Damage, area: str, name: str, words: str) -> None:
    damage(service)
    code, checks = report("--model-repository", service)
    assert code == 1
    found = checks[f"model {area}", name]
    assert found["status"] == "FIX"
    assert words in found["found"]
    assert found["remedy"]


def test_versions_of_the_detector_that_are_served_have_to_be_alike(service: Path) -> None:
    first, second = (service / "yolox_detector" / version for version in "12")
    config = first.with_name("config.pbtxt")
    shutil.copytree(first, second)
    plain = config.read_text()
    for policy in ("", "version_policy { all { } }\n"):
        config.write_text(plain + policy)
        assert report("--model-repository", service)[0] == 0
    sidecar = json.loads((second / "model.json").read_text())
    (second / "model.json").write_text(json.dumps({**sidecar, "labels": ["another"]}))
    code, checks = report("--model-repository", service)
    assert code == 1
    check = checks["model yolox_postprocess", "detector"]
    assert (check["status"], check["found"].split()[0]) == ("FIX", str(first))
    for policy in ("", "version_policy { specific { versions: 1 } }\n"):
        config.write_text(plain + policy)
        assert report("--model-repository", service)[0] == 0


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (removed("yolox/1/yolox_steps/letterbox.py"), "yolox_steps/letterbox.py", "is not there"),
        (
            replaced("yolox/1/yolox_steps/decode.py", "import cv2", "import cv2 as"),
            "yolox_steps/decode.py code",
            "line",
        ),
        # What the parser lets pass.
        (replaced("yolox_preprocess/1/model.py", "NICENESS = 10", "return 10"), "1/model.py code", "outside function"),
    ],
)
def test_what_keeps_the_steps_code_from_being_imported(service: Path, damage: Damage, name: str, words: str) -> None:
    damage(service)
    code, checks = report("--model-repository", service)
    assert code == 1
    assert checks["model yolox_preprocess", name]["status"] == "FIX"
    assert words in checks["model yolox_preprocess", name]["found"]


def test_code_is_never_run(service: Path) -> None:
    trace = service.parent / "trace"
    for file in ("yolox_preprocess/1/model.py", "yolox/1/yolox_steps/parameters.py"):
        with (service / file).open("a") as code:
            code.write(f"\nopen({str(trace)!r}, 'w').close()\n")
    assert report("--model-repository", service)[0] == 0
    assert not trace.exists()


def test_code_that_others_can_write_is_told(service: Path) -> None:
    (service / "yolox_postprocess" / "1" / "model.py").chmod(0o666)
    (service / "yolox" / "1" / "yolox_steps" / "nms.py").chmod(0o664)
    code, checks = report("--model-repository", service)
    assert code == 0
    for name, file in (("1/ permissions", "model.py"), ("yolox_steps/ permissions", "nms.py")):
        found = checks["model yolox_postprocess", name]
        assert found["status"] == "WARN"
        assert file in found["found"]
        assert found["remedy"].startswith("chmod go-w ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_model_of_another_user_is_told(service: Path) -> None:
    os.chown(service / "yolox_detector" / "1" / "model.onnx", 12345, -1)
    found = report("--model-repository", service)[1]["model yolox_detector", "1/ permissions"]
    assert found["status"] == "WARN"
    assert "belongs to user 12345" in found["found"]
    assert found["remedy"] == "chown it"


def test_a_missing_decoder_is_told_and_not_raised(service: Path) -> None:
    code = "import sys; sys.modules['cv2'] = None; from pinstream_cli.doctor import doctor; doctor()"
    command = [sys.executable, "-c", code, "--json", "--model-repository", str(service)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (check,) = (
        check
        for check in json.loads(done.stdout)["checks"]
        if (check["area"], check["name"]) == ("model yolox_preprocess", "packages")
    )
    assert "cv2" in check["found"]


def test_with_verify_only_what_was_built_is_fit(service: Path) -> None:
    detector = service / "yolox_detector"
    with (detector / "config.pbtxt").open("a") as config:
        config.write(VERIFY)
    assert report("--model-repository", service)[1]["model yolox_detector", "1/ VERIFY"]["status"] == "OK"
    (detector / "1").chmod(0o777)
    code, checks = report("--model-repository", service)
    assert code == 1
    assert "others can write" in checks["model yolox_detector", "1/ VERIFY"]["found"]
    assert checks["model yolox_detector", "1/ permissions"]["status"] == "WARN"
    assert checks["model yolox_detector", "1/ permissions"]["remedy"].startswith("chmod go-w")
    (detector / "1").chmod(0o755)
    (detector / "1" / "model.json").unlink()
    code, checks = report("--model-repository", service)
    assert code == 1
    assert "VERIFY is set" in checks["model yolox_detector", "1/ VERIFY"]["found"]
