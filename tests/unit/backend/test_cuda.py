"""What the CUDA layer says on a machine without a GPU."""

from __future__ import annotations

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
