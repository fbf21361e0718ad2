"""What the command line names: files, directories, patterns, videos, cameras, and directories that are watched."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from pinstream_cli.detect.annotate import Annotator
from pinstream_cli.detect.sources import Item, Source, count, file_item, items, resolve
from pinstream_cli.detect.video import Video, VideoFile
from pinstream_cli.detect.watch import Watch
from pinstream_cli.errors import CommandError
from pinstream_client import Detections, InvalidImage, PinstreamError

FRAMES, FPS = 6, 12.0


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((24, 32, 3), shade, np.uint8))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden/d.jpg", ".e.jpg", "out/f.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    video = VideoFile(path, FPS)
    for number in range(FRAMES):
        video.write(np.full((48, 64, 3), number * 40, np.uint8))
    video.close()
    return path


def names(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def nothing_found() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def test_directory_gives_its_images_sorted_without_hidden_ones_and_without_what_was_written(tree: Path) -> None:
    found = resolve([str(tree)], leave_out=tree / "out")
    assert names(found) == [str(tree / name) for name in ("a.PNG", "b.jpg", "sub/c.webp")]
    assert [str(source.place) for source in found if isinstance(source, Item)] == ["a", "b", "sub/c"]
    assert all(isinstance(source, Item) and source.stamp for source in found)
    assert count(found) == 3


def test_writing_into_the_directory_of_the_images_is_refused(tree: Path) -> None:
    with pytest.raises(CommandError, match="name another directory"):
        resolve([str(tree)], leave_out=tree / "sub" / "..")


def test_directory_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"no image in .*\.jpg.*\.webp"):
        resolve([str(tmp_path)])


def test_pattern_reaches_into_subdirectories(tree: Path) -> None:
    assert names(resolve([f"{tree}/**/*.[jw]*"])) == [str(tree / "b.jpg"), str(tree / "sub/c.webp")]


def test_file_is_taken_as_it_is_called(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for name in ("x[1].jpg", "0"):
        (tree / name).write_bytes((tree / "b.jpg").read_bytes())
    found = resolve(["x[1].jpg", "0", "no-such.jpg"])
    assert names(found) == ["x[1].jpg", "0", "no-such.jpg"]
    assert all(isinstance(source, Item) for source in found)


def test_number_is_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (camera,) = resolve(["99"])
    assert isinstance(camera, Video)
    assert camera.is_camera
    assert count([camera]) is None
    with pytest.raises(InvalidImage, match=r"no camera 99: .*/dev/video99"):
        next(iter(items([camera])))


def test_standard_input_is_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xd8picture")))
    (item,) = resolve(["-"])
    assert isinstance(item, Item)
    assert item.image == b"\xff\xd8picture"


def test_what_is_named_twice_is_looked_at_once(tree: Path) -> None:
    assert names(resolve([str(tree / "b.jpg"), str(tree / "a.PNG"), str(tree / "b.jpg")])) == [
        str(tree / "b.jpg"),
        str(tree / "a.PNG"),
    ]


def test_video_gives_its_frames_in_order_with_their_times(clip: Path) -> None:
    (video,) = resolve([str(clip)])
    assert isinstance(video, Video)
    assert (video.frame_count, video.fps, video.problem) == (FRAMES, FPS, None)
    frames = list(items([video]))
    assert [item.frame for item in frames] == list(range(FRAMES))
    assert [item.time_s for item in frames] == [number / FPS for number in range(FRAMES)]
    for item in frames:
        assert isinstance(item.image, np.ndarray)
        assert item.image.shape == (48, 64, 3)
        assert abs(float(item.image.mean()) - (item.frame or 0) * 40) < 8  # the codec is lossy


@pytest.mark.parametrize(("content", "words"), [(b"no video", "finds no video"), (None, "no such file")])
def test_video_that_cannot_be_read_keeps_its_problem(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    (video,) = resolve([str(path)])
    assert isinstance(video, Video)
    assert words in str(video.problem)
    assert list(items([video])) == []


def test_annotated_pictures_keep_the_tree_and_never_overwrite_an_input(tree: Path) -> None:
    picture(tree / "b.png", 7)
    before = (tree / "b.png").read_bytes()
    annotator = Annotator(tree, [tree / "b.png"])
    item = file_item(tree / "b.jpg")
    assert annotator.write(item, nothing_found()) == tree / "b-2.png"
    assert annotator.write(item, nothing_found()) == tree / "b-3.png"
    assert annotator.write(file_item(tree / "sub/c.webp", tree), nothing_found()) == tree / "sub/c.png"
    assert (tree / "b.png").read_bytes() == before


def test_annotated_video_has_all_frames_at_the_same_rate(clip: Path, tmp_path: Path) -> None:
    annotator = Annotator(tmp_path / "out")
    (source,) = resolve([str(clip)])
    written = {annotator.write(item, nothing_found()) for item in items([source])}
    annotator.close()
    assert written == {tmp_path / "out" / "clip.mp4"}
    again = Video.file(tmp_path / "out" / "clip.mp4")
    assert (again.frame_count, again.fps) == (FRAMES, FPS)


def test_video_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PinstreamError, match=r"cannot write the video .*\.mp4 or \.avi"):
        VideoFile(tmp_path / "no" / "such.mp4", FPS).write(np.zeros((48, 64, 3), np.uint8))


def test_watch_takes_a_file_once_it_is_whole_and_again_when_it_changes(tmp_path: Path) -> None:
    watch = Watch(tmp_path, None, set())
    growing = tmp_path / "a.jpg"
    growing.write_bytes(b"1")
    assert watch.poll() == []
    growing.write_bytes(b"12")
    assert watch.poll() == []
    (item,) = watch.poll()
    assert item.name == str(growing)
    assert [again.name for again in watch.poll()] == [str(growing)]  # it has no result yet
    watch.done(item)
    assert watch.poll() == []
    os.utime(growing, ns=(1, 1))
    assert watch.poll() == []
    assert [again.name for again in watch.poll()] == [str(growing)]


def test_watch_knows_what_an_earlier_run_has_done(tree: Path) -> None:
    done = {(str(tree / "b.jpg"), file_item(tree / "b.jpg").stamp)}
    watch = Watch(tree, tree / "out", done)
    watch.poll()
    assert [item.name for item in watch.poll()] == [str(tree / "a.PNG"), str(tree / "sub/c.webp")]
