"""`pinstream doctor` on the repository of the YOLOX service: what keeps a server from starting is found before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pinstream_cli.build import build_service
from pinstream_cli.triton.assemble import service_repository
from tests.unit.cli.test_doctor import report
from tests.yolox_exports import Export

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


def test_an_empty_plan_is_empty_from_the_first_line_on(tmp_path: Path) -> None:
    version = tmp_path / "repository" / "empty" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "pinstream"\n')
    (version / "model.plan").touch()
    code, checks = report("--model-repository", tmp_path / "repository")
    assert code == 1
    assert checks["model empty", "1/model.plan"]["found"] == "is empty"


def test_with_auto_build_a_plan_need_not_be_there(service: Path) -> None:
    version = service / "built" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(
        'backend: "pinstream"\nparameters { key: "AUTO_BUILD" value { string_value: "true" } }\n'
    )
    shutil.copy(service / "yolox_detector" / "1" / "model.onnx", version)
    _, checks = report("--model-repository", service)
    assert checks["model built", "1/model.onnx"]["status"] == "OK"
    (here,) = (check for (area, name), check in checks.items() if area == "model built" and name.endswith(" here"))
    # What is wrong where there is no GPU is that, and not the missing plan.
    assert "AUTO_BUILD" in here["found"]
    assert here["status"] == ("FIX" if "needs a GPU" in here["found"] else "OK")
