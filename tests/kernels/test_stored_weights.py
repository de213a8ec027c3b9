"""Packed weights of the C++ backend that were stored: on another CPU, or by another version."""

import pytest
import torch

from fassd_kernels import ops

OUTPUTS, LAYOUT, HEADER = 1, 6, 16  # fields of the header: a block's width, the layout's number


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
