"""Packed weights of the C++ backend that were stored: on another CPU, or by another version."""

import pytest
import torch

from fassd_kernels import ops

# Fields of the header: the method, a block's width, the layout's number, the weight's type.
METHOD, OUTPUTS, LAYOUT, TYPE, HEADER = 0, 1, 6, 7, 16


@pytest.mark.parametrize("field", [OUTPUTS, LAYOUT])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_another_cpu_or_version_packed_is_packed_again(field, kernel):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 7, kernel, kernel, generator=generator)
    x = torch.randn(2, 7, 11, 13, generator=generator)
    stored = ops.pack_weight(weight).clone()
    values = stored.view(torch.float32)
    values[field] += 1
    values[HEADER:] = torch.nan  # not to be read
    expected = ops.conv_act([x], weight)
    assert expected.isfinite().all()
    assert torch.equal(ops.conv_act([x], weight, packed=stored), expected)


def test_what_another_version_packed_for_another_method_is_packed_again():
    """Version 1 took F(2x2, 3x3), and did not tell the weight's type."""
    weight, x = torch.randn(9, 7, 3, 3), torch.randn(1, 7, 6, 5)
    older = torch.full((HEADER + 9 * 7 * 16,), torch.nan)
    older[:HEADER] = ops.pack_weight(weight).view(torch.float32)[:HEADER]
    older[METHOD], older[LAYOUT], older[TYPE] = 1, 1, 0
    expected = ops.conv_act([x], weight)
    assert torch.equal(ops.conv_act([x], weight, packed=older.view(torch.uint8)), expected)
    with pytest.raises(RuntimeError, match="are not what pack_weight gives"):
        ops.conv_act([x], weight, packed=older.view(torch.uint8), stride=[2, 2])
    older[METHOD] = torch.nan
    with pytest.raises(RuntimeError, match="are not what pack_weight gives"):
        ops.conv_act([x], weight, packed=older.view(torch.uint8))


def test_tiles_that_another_cpu_or_version_packed_are_packed_again():
    weight, x = torch.randn(9, 7, 3, 3).bfloat16(), torch.randn(1, 7, 6, 5).bfloat16()
    here = ops.pack_weight(weight).view(torch.float32)
    # Three rows of taps of 21 terms, and nine outputs, in tiles of 32 x 16.
    tiles = torch.full((HEADER + 3 * 32 * 16 // 2,), torch.nan)
    tiles[:HEADER] = here[:HEADER]
    tiles[METHOD], tiles[LAYOUT] = 3, here[LAYOUT] + 1
    expected = ops.conv_act([x], weight)
    assert torch.equal(ops.conv_act([x], weight, packed=tiles.view(torch.uint8)), expected)
    with pytest.raises(RuntimeError, match="are not what pack_weight gives"):
        ops.conv_act([x.float()], weight.float(), packed=tiles.view(torch.uint8))
    # Version 2 had other tiles, and another number of them.
    older = torch.cat([tiles, torch.full((3 * 32 * 16,), torch.nan)])
    older[LAYOUT] = 2
    assert torch.equal(ops.conv_act([x], weight, packed=older.view(torch.uint8)), expected)
