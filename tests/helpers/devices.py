"""The device of the tests marked `cuda`, which are skipped where there is none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEVICE = os.environ.get("SEMFLOW_CUDA", "cuda")
"""`SEMFLOW_CUDA=cpu` runs these tests on the CPU, to find mistakes in them before a GPU is at hand."""


def is_there() -> bool:
    """Return whether the tests marked `cuda` can run."""
    return DEVICE == "cpu" or torch.cuda.is_available()


@contextmanager
def exact_products(precision: str = "highest") -> Iterator[None]:
    """Forbid TF32 during the block, or allow in matrix products what `torch.set_float32_matmul_precision` says."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
