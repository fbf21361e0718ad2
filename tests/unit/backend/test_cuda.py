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
    with pytest.raises(cuda.CudaError, match=r"choosing GPU 3 of 0: cudaError\w+ \(.+\)"):
        cuda.set_device(3)
