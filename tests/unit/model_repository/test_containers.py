"""What a picture's file is put together of costs no decoder more than its pixels do."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fuzz import bombs
from yolox_steps import containers
from yolox_steps.containers import MOST_CHUNKS, MOST_EXIF, MOST_SCANS, MOST_SEGMENTS
from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode, prepare_process
from yolox_steps.errors import RequestError

PACKAGE = Path(containers.__file__).parents[1]
PEAK = """
import pathlib, resource, sys
from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode
decode(pathlib.Path(sys.argv[1]).read_bytes(), DEFAULT_MAX_PIXELS)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.fixture(autouse=True)
def decoding_process() -> None:
    prepare_process()


def refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as refused:
        decode(data, DEFAULT_MAX_PIXELS)
    return str(refused.value)


def shown(data: bytes) -> bytes:
    return decode(data, DEFAULT_MAX_PIXELS).tobytes()


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded() -> None:
    # Of 8192 x 8192 pixels each costs ten milliseconds and a hundred bytes.
    bomb = bombs.scans(4096, 5000)
    began = time.process_time()
    assert f"more than {MOST_SCANS} scans" in refusal(bomb)
    assert time.process_time() - began < 1


def test_a_jpeg_of_many_scans_is_decoded() -> None:
    assert shown(bombs.scans(64, MOST_SCANS // 2)) == shown(bombs.jpeg(64))


def test_scans_of_a_second_picture_in_the_file_do_not_count() -> None:
    picture = bombs.scans(64, MOST_SCANS // 2)
    assert shown(picture + picture) == shown(picture)


@pytest.mark.parametrize("stray", [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\x02", bombs.COMMENT])
def test_a_jpeg_of_too_many_segments_is_refused_before_they_are_looked_at_one_by_one(stray: bytes) -> None:
    data = bombs.jpeg(64)
    # A tenth of them is borne where it can be read.
    if stray in (b"\xff", bombs.COMMENT):
        assert shown(bombs.inserted(data, stray * (MOST_SEGMENTS // 10))) == shown(data)
    assert f"more than {MOST_SEGMENTS} segments" in refusal(bombs.inserted(data, stray * MOST_SEGMENTS))


def test_segments_between_scans_count_as_well() -> None:
    end = bombs.COMMENT * MOST_SEGMENTS + bombs.END_OF_IMAGE
    progressive = bombs.jpeg(64, progressive=True).removesuffix(bombs.END_OF_IMAGE)
    assert f"more than {MOST_SEGMENTS} segments" in refusal(progressive + end)


def test_many_pieces_of_exif_are_refused_before_they_are_joined() -> None:
    exif = b"\xff\xe1" + (3000).to_bytes(2, "big") + b"Exif\0\0" + bytes(2992)
    assert shown(bombs.inserted(bombs.jpeg(64), exif * 2)) == shown(bombs.jpeg(64))
    assert f"more than {MOST_EXIF} pieces of EXIF" in refusal(bombs.inserted(bombs.jpeg(64), exif * 5000))


@pytest.mark.parametrize("frame", [0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_arithmetic_coding_is_refused_since_its_pixels_need_no_bytes(frame: int) -> None:
    data = bombs.jpeg(64, progressive=True)
    assert "arithmetic coding" in refusal(data.replace(b"\xff\xc2", bytes([0xFF, frame]), 1))


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_texts_and_profiles_of_a_png_are_not_unpacked(kind: bytes, behind_pixels: bool, tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(bombs.png(kind, 10, behind_pixels=behind_pixels))
    # libpng takes 8 MB from one.
    large = bombs.png(kind, 7_900_000, behind_pixels=behind_pixels)
    at = large.index(kind) - 4
    chunk = large[at : at + 12 + int.from_bytes(large[at : at + 4], "big")]
    (tmp_path / "large.png").write_bytes(large[:at] + chunk * 50 + large[at + len(chunk) :])
    small, bomb = (_peak_mib(tmp_path / name) for name in ("small.png", "large.png"))
    assert bomb < small + 20


def _peak_mib(file: Path) -> int:
    command = [sys.executable, "-c", PEAK, str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE).stdout)


def test_a_png_of_too_many_chunks_is_refused() -> None:
    assert shown(bombs.chunks(MOST_CHUNKS // 10)) == bytes(4 * 4 * 3)
    assert f"more than {MOST_CHUNKS} chunks" in refusal(bombs.chunks(MOST_CHUNKS))


def test_the_orientation_of_a_png_is_kept() -> None:
    y, x = np.mgrid[:20, :30]
    image = Image.fromarray(np.stack([x * 8, y * 12, x + y], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif.tobytes(), icc_profile=bytes(300), dpi=(72, 72))
    assert b"iCCP" in stream.getvalue()
    assert b"iCCP" not in containers.decodable(stream.getvalue())
    assert decode(stream.getvalue(), DEFAULT_MAX_PIXELS).shape == (30, 20, 3)
