"""tritonserver's log on disk: bounded, and no reason to stop."""

from __future__ import annotations

from pathlib import Path

from pinstream_cli.triton.log import LogFile


def test_the_newest_lines_are_kept_and_no_more_than_twice_the_bound(tmp_path: Path) -> None:
    file, before = tmp_path / "t.log", tmp_path / "t.log.1"
    log = LogFile(file, most_bytes=1000)
    for number in range(1000):
        log.write(f"line {number:04}\n")
        assert file.stat().st_size <= 1010
    log.close()
    assert before.stat().st_size <= 1010
    kept = [line for part in (before, file) for line in part.read_text().splitlines()]
    assert kept == [f"line {number:04}" for number in range(1000 - len(kept), 1000)]
    assert len(kept) > 100


def test_the_bound_is_of_bytes_whatever_is_written(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "t.log", most_bytes=1000)
    for _ in range(100):
        log.write("\ufffd" * 30 + "\n")
        assert (tmp_path / "t.log").stat().st_size <= 1000 + 91
    log.close()


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.log"
    path.symlink_to("/dev/full")
    log = LogFile(path)
    for _ in range(3):
        log.write("lost\n")
    path.unlink()
    log.write("there is room again\n")
    log.close()
    assert path.read_text() == "there is room again\n"
