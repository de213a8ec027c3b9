"""Each primitive of csrc/cuda/ptx.cuh, as nvcc compiles it for three architectures, against plain
arithmetic. Every test takes an architecture whose kernels are loaded: mutations.py calls them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx import build, executor
from ptx.test_matrices import D, a16, a32, b16, b32, bits_of, fragment

if build.nvcc() is None:
    pytest.skip("there is no nvcc to make PTX of primitives.cu", allow_module_level=True)

ARCHITECTURES = (75, 80, 90)
SOURCE = build.HERE / "primitives.cu"
RANDOM = np.random.default_rng(4)


def load(architecture: int, csrc: Path = build.CSRC) -> str:
    text = build.ptx_of(SOURCE, architecture, csrc)
    executor.load(f"{SOURCE.stem}.sm_{architecture}.ptx", text)
    return text


def launch(
    architecture: int, kernel: str, *arrays: np.ndarray, arrival: str = "late", **how: Any
) -> None:
    with executor.settings(capability=architecture, arrival=arrival, races=True, seed=3):
        executor.launch(kernel, *arrays, **how)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids="sm_{}".format)
def architecture(request: pytest.FixtureRequest) -> int:
    load(request.param)
    return request.param


def test_copies_fill_up_with_zeros(architecture: int) -> None:
    sizes = (np.arange(64, dtype=np.int32) + 1) % 9 * 2
    values = RANDOM.integers(1, 256, (64, 16)).astype(np.uint8)
    expected = np.zeros_like(values)
    for i, size in enumerate(sizes):
        expected[7 * i % 64, :size] = values[i, :size]
    # The last of them ends where the memory does.
    values = values.reshape(-1)[: 63 * 16 + sizes[63]].copy()
    for arrival in executor.ARRIVALS:
        out = np.zeros_like(expected)
        launch(
            architecture, "copies", values, sizes, out, arrival=arrival, block=(64,), shared=1024
        )
        np.testing.assert_array_equal(out, expected)


def test_groups_are_waited_for_in_order(architecture: int) -> None:
    values = RANDOM.integers(0, 2**32, (3, 128), dtype=np.uint32)
    out: np.ndarray = np.zeros((3, 3, 128), np.uint32)
    launch(architecture, "groups", values, out, shared=values.nbytes)
    arrived = (out == values).all(axis=-1)
    # Turing has no asynchronous copies.
    np.testing.assert_array_equal(arrived, np.tri(3, dtype=bool) | (architecture < 80))


def test_matrices_of_shared_memory(architecture: int) -> None:
    values = RANDOM.permutation(2048).astype(np.uint16).reshape(256, 8)
    rows = RANDOM.permutation(256)[:32].astype(np.int32)
    out: np.ndarray = np.zeros((10, 32), np.uint32)
    launch(architecture, "matrices", values, rows, out, shared=values.nbytes)
    plain = values[rows].reshape(4, 8, 8)
    transposed = plain.transpose(0, 2, 1)
    # Lane 4g + t has elements 2t and 2t + 1 of row g.
    expected = np.concatenate([plain, transposed, transposed[:2]]).reshape(10, 64)
    np.testing.assert_array_equal(out.view(np.uint16), expected)


def test_products(architecture: int) -> None:
    for kind, depth, left, right in (
        ("f16", 16, a16(16), b16(16)),
        ("bf16", 16, a16(16), b16(16)),
        ("tf32", 8, a32(8), b32(8)),
    ):
        # Small integers: sums are exact, and no two places of a matrix can be taken for each other.
        a = RANDOM.integers(-60, 61, (16, depth)).astype(float)
        b = RANDOM.integers(-60, 61, (depth, 8)).astype(float)
        c = RANDOM.integers(-1000, 1001, (16, 8)).astype(np.float32)
        registers = [fragment(bits_of(a, kind), left), fragment(bits_of(b, kind), right)]
        sums = fragment(c, D).view(np.float32)
        if architecture < 80 and kind != "f16":  # which the operators refuse
            with pytest.raises(executor.Fault, match="trap"):
                launch(architecture, f"multiply_{kind}", *registers, sums)
            continue
        launch(architecture, f"multiply_{kind}", *registers, sums)
        expected = fragment((a @ b + c).astype(np.float32), D).view(np.float32)
        np.testing.assert_array_equal(sums, expected)


def test_rounding_to_tf32(architecture: int) -> None:
    """To 10 bits behind the point, ties away from zero, past the largest to infinity."""
    bits = RANDOM.integers(0, 0x7F7FFFFF, 1024, dtype=np.uint32)
    bits[:256] = bits[:256] & ~np.uint32(0x1FFF) | 0x1000
    bits[512:] |= np.uint32(0x80000000)
    bits[:2] = 0x7F7FFFFF, 0x7F800000
    out = np.zeros_like(bits)
    launch(architecture, "round_tf32", bits, out, block=(1024,))
    rounded = (bits + np.uint32(0x1000)) & ~np.uint32(0x1FFF)
    np.testing.assert_array_equal(out, rounded if architecture >= 80 else bits)


def test_selected_bits(architecture: int) -> None:
    masks, a, b = RANDOM.integers(0, 2**32, (3, 64), dtype=np.uint32)
    out = np.zeros_like(masks)
    launch(architecture, "select_bits", masks, a, b, out, block=(64,))
    np.testing.assert_array_equal(out, (a & masks) | (b & ~masks))


def test_dependent_kernels(architecture: int) -> None:
    """On sm_90 the second begins before the first has written, and waits for that."""
    values, before, after = (np.zeros(8, np.int32) for _ in range(3))
    dependent = architecture >= 90
    settings = executor.settings(capability=architecture, overlap=True)
    with settings, executor.watched(values, before, after):
        executor.launch("produce", values, grid=(8,), dependent=dependent, wait=False)
        executor.launch("consume", values, before, after, grid=(8,), dependent=dependent)
    assert after.tolist() == list(range(1, 9))
    assert before.tolist() == ([0] * 8 if dependent else after.tolist())
