"""The work of a launch, as the plans count it, and what the planner makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from bench.test_cuda_model import H200, conv

from fassd.bench.costs import cuda as predict
from fassd.bench.costs.cuda import Model
from fassd_kernels.triton import availability

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)


def test_instructions_of_a_launch():
    """Of a full GPU, those of twice as many rows are twice as many, and take twice as long.

    What a block does before its first tile is done once.
    """
    small, large = (conv((31,), 31, (size, 1024), (1, 1)) for size in (512, 1024))
    for part, instructions in small["instructions"].items():
        rest = 0.03 if part == "other" else 1e-6
        assert large["instructions"][part] == pytest.approx(2 * instructions, rel=rest), part
    one, two = (Model(H200, torch.float16).launch(answer) for answer in (small, large))
    assert one.instructions == sum(small["instructions"].values())
    assert one.issue == pytest.approx(one.instructions / (4 * 132 * 1.83e9))
    assert two.issue == pytest.approx(2 * one.issue, rel=0.03)
    # Four instructions a clock at 0.7 of the time.
    assert two.predicted >= two.issue / 0.7


@pytest.mark.parametrize("copies", ["threads", ""])
def test_work_is_that_of_the_loops(monkeypatch, copies):
    """A 1x1 of 48 channels, 40 of them the result's, in tiles and chunks that all divide."""
    monkeypatch.setenv("FASSD_KERNELS_CUDA_COPIES", copies)
    answer = conv((48,), 40, (64, 64), (1, 1))
    (plan,), work = answer["blocks"], answer["work"]
    blocks, chunks = plan["blocks"], math.ceil(48 / plan["chunk"])
    pixels, n = plan["tile_width"] * plan["tile_height"], plan["n_tiles"]
    warps, m = plan["warps"], plan["m_tiles"]
    if copies:
        assert plan["boxes"] == work.get("boxes", 0) == 0
        assert work["pixel_vectors"] == blocks * chunks * pixels * plan["chunk"] / 8 / 32
        assert work["weight_vectors"] == blocks * chunks * math.ceil(plan["chunk"] * n / 32)
    else:
        assert plan["boxes"] == 1
        assert work["boxes"] == 2 * blocks * chunks
        assert work["box_chunks"] == warps * blocks * chunks
        assert "pixel_vectors" not in work
    assert work["steps"] == blocks * warps * 3  # of 16 channels
    assert work["products"] == work["steps"] * (m * n + m + math.ceil(n / 2))
    assert work["plain_vectors"] == blocks * math.ceil(pixels * n / 32)
    assert work["staged"] == blocks * warps * m * n
    assert answer["instructions"]["product"] > work["products"]


@pytest.mark.parametrize("out", [16, 40, 96, 192])
@pytest.mark.parametrize("size", [(16, 32), (64, 128), (256, 512)])
def test_tiles_of_a_3x3_are_eight_pixels_wide(size, out):
    """In narrower ones, the banks of shared memory let half of eight pixels be read at once."""
    (plan,) = conv((64,), out, size)["blocks"]
    assert plan["tile_width"] >= 8


def test_of_equal_tiles_the_widest_is_taken():
    """A 1x1 reads each pixel once, whatever the tile."""
    (plan,) = conv((64,), 64, (256, 512), (1, 1))["blocks"]
    assert plan["tile_width"] == 64


def test_kernels_are_told_by_the_plan():
    """All that are compiled, by arithmetic; and what a plan takes is among them."""
    variants = torch.ops.fassd_kernels_plan.variants
    halves = variants(predict.HALF).tolist()
    assert [8, 2, 8, 0, 1] in halves and halves != variants(predict.FLOAT32).tolist()
    assert variants(predict.TF32).tolist() == variants(predict.FLOAT32).tolist()
    (plan,) = conv((64,), 64, (256, 512))["blocks"]
    assert [plan[n] for n in ("warps", "m_tiles", "n_tiles", "sliding", "splits")] in halves
    assert [8, 2, 16, 0, 1] in variants(predict.HALF, "pair_kernel").tolist()
    with pytest.raises(RuntimeError, match="kernel is 'stem_kernel'; expected convolution_kernel"):
        variants(predict.HALF, "stem_kernel")
    with pytest.raises(RuntimeError, match="arithmetic is 3"):
        variants(3)
