"""What the CUDA layer says on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

cuda = pytest.importorskip("pinstream.cuda", reason="needs the cuda-python package")


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    if cuda.device_count():
        pytest.skip("this machine has a GPU; tests/gpu is for it")


def test_no_gpu_is_no_error_to_ask_for() -> None:
    assert cuda.device_count() == 0


def test_a_failure_says_what_was_being_done_and_cudas_own_name_for_it() -> None:
    with pytest.raises(cuda.CudaError, match=r"choosing GPU 3 of 0: cudaError\w+ \(.+\); .*serve the .onnx file"):
        cuda.set_device(3)


@pytest.mark.parametrize(
    ("reason", "is_memory"),
    [
        ("Requested amount of GPU memory (1024 bytes) could not be allocated", True),
        ("Error Code 2: OutOfMemory", True),
        ("Cuda Runtime (out of memory)", True),
        ("Failed due to an old deserialization call", False),
        ("it gave no reason", False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_plan_that_does_not_fit(reason: str, is_memory: bool) -> None:
    assert ("stop what else uses the GPU" in cuda.memory_advice_for(reason)) == is_memory


def test_without_a_gpu_no_context_is_lost() -> None:
    with pytest.raises(cuda.CudaError) as caught:
        cuda.set_device(0)
    assert not caught.value.sticky
    assert "lost its GPU context" not in str(caught.value)
    assert cuda.lost_context() == ""


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cudaErrorNoDevice", "serve the .onnx file"),
        ("cudaErrorInitializationError", "look at nvidia-smi and at what the kernel says"),
        ("cudaErrorStubLibrary", r"take its directory \(stubs\) out of LD_LIBRARY_PATH"),
        ("cudaErrorSystemNotReady", "start nvidia-fabricmanager"),
        ("cudaErrorSystemDriverMismatch", "restart the machine after an update of the driver"),
        ("cudaErrorCompatNotSupportedOnDevice", "install a newer driver"),
    ],
)
def test_a_driver_that_cannot_be_used_is_no_lost_context(name: str, advice: str) -> None:
    error = getattr(cuda.cudart.cudaError_t, name)
    with pytest.raises(cuda.CudaError, match=rf"^CUDA failed while counting: {name} \(.+\); .*{advice}") as caught:
        cuda.call("counting", lambda: (error,))
    assert not caught.value.sticky
    assert cuda.lost_context() == ""


LIBCUDA = "7f0c5a400000-7f0c5a4a1000 r--p 00000000 00:2f 4588 /usr/lib/x86_64-linux-gnu/libcuda.so"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a driver's library of this version be loaded, by what the kernel tells of this process."""
    monkeypatch.setattr(cuda, "MAPS", tmp_path / "maps")
    after = "7f0c5c000000-7f0c5c021000 rw-p 00000000 00:00 0"

    def load(version: str) -> None:
        (tmp_path / "maps").write_text(f"{LIBCUDA}.{version}\n{after}\n")

    return load


@pytest.mark.parametrize("release", ["580.65.06", "580.95.05", "535.288"])
def test_an_update_of_the_driver_shows_in_its_version(release: str, loaded: Callable[[str], None]) -> None:
    loaded(release)
    assert cuda.driver_version() == release


def test_a_library_without_a_release_leaves_the_version_of_cuda(loaded: Callable[[str], None]) -> None:
    loaded("1.1")  # as under Windows
    assert cuda.driver_version() != "1.1"
