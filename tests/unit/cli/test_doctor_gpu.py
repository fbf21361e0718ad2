"""What `pinstream doctor` makes of what nvidia-smi says, and how; tests/gpu has the one of a real driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.gpu import check_gpus
from pinstream_cli.triton.preflight import DRIVER
from tests.unit.cli.test_doctor import report

ONE = "NVIDIA H200, 9.0, 570.86.15, 143000, 143771"
SMALL = "NVIDIA GeForce RTX 4060, 8.9, 570.86.15, 500, 8188"
WITHOUT_MEMORY = "NVIDIA Thor, 11.0, 580.00, [N/A], [N/A]"
SmiSays = Callable[..., None]


@pytest.fixture
def smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmiSays:
    """Puts a program of that name on PATH that says so, and ends with a code."""

    def put(*lines: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        told = "\n".join(lines)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


def checks() -> dict[str, Check]:
    return {check.name: check for check in check_gpus()}


def test_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = check_gpus()
    words = "without nvidia-smi" if DRIVER.is_dir() else "no NVIDIA driver: models run on the CPU"
    assert (check.status, words in check.found) == ("WARN" if DRIVER.is_dir() else "OK", True)


def test_a_driver_that_fails(smi_says: SmiSays) -> None:
    smi_says("Failed to initialize NVML: Driver/library version mismatch", code=18)
    (check,) = check_gpus()
    assert (check.status, check.found) == (
        "FIX",
        "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch",
    )
    assert "reboot" in check.remedy


def test_a_program_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF, and no more")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = check_gpus()
    assert (check.status, check.found[:16]) == ("FIX", "nvidia-smi fails")


@pytest.mark.parametrize("says", [(), ("",), ("No devices were found",), ("a, b", "1,2,3,4,5,6", "x" * 10_000)])
def test_a_driver_without_a_gpu(smi_says: SmiSays, says: tuple[str, ...]) -> None:
    smi_says(*says)
    (check,) = check_gpus()
    assert (check.status, check.found[:23]) == ("WARN", "nvidia-smi lists no GPU")
    assert len(check.found) < 300
    if says and says[0]:
        assert check.found.endswith(f" and says: {says[0]}")
    # All else is told as well.
    code, told = report()
    assert code == 0
    assert told["gpu", "driver"]["found"] == check.found
    assert told["versions", "Triton"]["status"] == "OK"


def test_one_gpu_and_a_warning_beside_it(smi_says: SmiSays) -> None:
    smi_says(ONE, "WARNING: infoROM is corrupted at gpu 0000:3B:00.0")
    found = checks()
    assert list(found) == ["driver", "CUDA runtime", "GPU 0"]
    assert (found["driver"].status, found["driver"].found) == ("OK", "570.86.15")
    assert found["GPU 0"].status == "OK"
    assert found["GPU 0"].found == "NVIDIA H200, compute capability 9.0, 143000 MiB free of 143771"


def test_several_gpus_each_with_its_memory(smi_says: SmiSays) -> None:
    smi_says(ONE, SMALL, WITHOUT_MEMORY)
    found = checks()
    assert list(found) == ["driver", "CUDA runtime", "GPU 0", "GPU 1", "GPU 2"]
    assert [found[f"GPU {index}"].status for index in range(3)] == ["OK", "WARN", "OK"]
    assert "who holds it" in found["GPU 1"].remedy
    assert found["CUDA runtime"].found.endswith("GPUs usable") or "finds none of 3 GPUs" in found["CUDA runtime"].found
