"""Where Triton's kernels can be tried."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def triton_device() -> str:
    """The device on which kernels run here: a GPU, or the CPU by Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU")
    return "cpu"
