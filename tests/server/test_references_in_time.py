"""Pictures that the detector has to read soon, as `pinstream serve` has it beside a GPU."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pinstream_cli.triton.assemble import service_repository
from pinstream_cli.yolox_service import build_service
from tests.server.running import running
from tests.server.test_references import assert_equal, by_value, candidates, detected, pictures, referred, refused
from tests.yolox_exports import Export

WITHIN_S = 3


def test_a_picture_that_is_not_read_in_time_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(service_repository(), repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(repository / "yolox_detector" / "1")
    build_service(Export(size=(96, 160)).save(tmp_path / "small.onnx"), repository / "yolox_detector" / "1")
    config = repository / "yolox_preprocess" / "config.pbtxt"
    usual = 'key: "READ_WITHIN_S", value: { string_value: "50" }'
    assert usual in config.read_text()
    config.write_text(config.read_text().replace(usual, usual.replace("50", str(WITHIN_S))))
    with running(repositories=[repository]) as server:
        late, _ = referred(server, pictures(2))
        soon, _ = referred(server, pictures(2))
        assert len(candidates(server, images_at=soon)) == 2
        time.sleep(WITHIN_S + 0.5)
        refused(server, "UNAVAILABLE", "not there any more", images_at=late)
        assert_equal(detected(server, pictures(2)), by_value(server, pictures(2)))
