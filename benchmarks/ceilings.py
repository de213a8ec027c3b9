"""The two ceilings of a card: how fast it moves bytes, and how fast it multiplies matrices.

Both are measured through PyTorch's own library calls, on random data: a matrix product of zeros
runs measurably faster than one of real numbers (less switching, higher clocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Run, Sampling, interleaved

COPY_BYTES = 2 << 30
"""Size of the buffer that is copied; a few dozen times the L2 cache of today's cards."""

MATRIX_SIDE = 8192

FORMATS = {
    "float16": (torch.float16, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
"""Name of a rate -> dtype of the matrices and `torch.set_float32_matmul_precision`."""


def measure_ceilings(
    device: torch.device, sampling: Sampling, copy_bytes: int, matrix_side: int
) -> dict[str, Any]:
    """Copy bandwidth (read + written) in bytes/s, and matrix rates in operations/s.

    Args:
        device: what to measure.
        sampling: samples per figure.
        copy_bytes: size of the source buffer of the copy; halved until two of them fit.
        matrix_side: of the square matrices; a product counts 2 * side^3 operations.
    """
    return {
        "copy": copy_bandwidth(device, sampling, copy_bytes),
        "matrix": {name: matrix_rate(name, device, sampling, matrix_side) for name in FORMATS},
    }


def copy_bandwidth(device: torch.device, sampling: Sampling, size: int) -> dict[str, Any]:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        while 2 * size > free // 2:
            size //= 2
    source = torch.randint(-(2**62), 2**62, (size // 8,), dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    run = Run(lambda: target.copy_(source), 1, method(device), lambda: [target])
    timing = interleaved({"copy": run}, device, sampling)["copy"]
    if not torch.equal(source, target):
        raise RuntimeError("the copy differs from its source")
    moved = 2 * source.numel() * source.element_size()
    return {
        "bytes_per_s": moved / (timing.ms * 1e-3),
        "buffer_bytes": moved // 2,
        "timing": timing.record(),
    }


def matrix_rate(name: str, device: torch.device, sampling: Sampling, side: int) -> dict[str, Any]:
    dtype, precision = FORMATS[name]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)

    def multiply() -> Tensor:
        return torch.matmul(a, b, out=product)

    with float32_precision(precision):
        run = Run(multiply, 1, method(device), lambda: [product])
        timing = interleaved({name: run}, device, sampling)[name]
    if not torch.isfinite(product).all():
        raise RuntimeError(f"the {name} matrix product has elements that are not finite")
    return {
        "operations_per_s": 2 * side**3 / (timing.ms * 1e-3),
        "side": side,
        "timing": timing.record(),
    }


def method(device: torch.device) -> str:
    return "events" if device.type == "cuda" else "clock"


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Matrix products of float32 run in tf32 inside, if `precision` is ``high``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
