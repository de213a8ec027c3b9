"""The parts on their own: wiring of the HarDBlock, padding of DAPF, arguments."""

import pytest
import torch
from torch.nn import functional as F

from fassd.models import ASPP, DAPF, MDA, HarDBlock
from fassd.models.hardnet import harmonic_inputs, harmonic_width


def test_harmonic_inputs():
    assert [harmonic_inputs(k) for k in range(1, 9)] == [
        [0],
        [1, 0],
        [2],
        [3, 2, 0],
        [4],
        [5, 4],
        [6],
        [7, 6, 4, 0],
    ]


def test_harmonic_widths():
    assert [harmonic_width(k, 10, 1.7) for k in (1, 2, 3, 4)] == [10, 18, 10, 28]
    assert [harmonic_width(k, 24, 1.7) for k in (2, 4, 8)] == [40, 70, 118]


@pytest.mark.parametrize(("n_layers", "kept"), [(1, [1]), (2, [1, 2]), (5, [1, 3, 5])])
def test_hardblock_of_any_depth(n_layers, kept):
    block = HarDBlock(12, 6, 1.5, n_layers).eval()
    assert block.output_layers == kept
    assert block(torch.randn(1, 12, 5, 7)).shape == (1, block.out_channels, 5, 7)


def test_dapf_on_a_small_map_is_pointwise():
    """Where every dilation exceeds the map, each pixel of the output sees its own pixel only."""
    module = DAPF(6, 2).double().eval()
    x = torch.randn(1, 6, 12, 12, dtype=torch.float64, requires_grad=True)
    module(x)[0, :, 5, 7].sum().backward()
    reached = x.grad.abs().sum((0, 1)).nonzero().tolist()
    assert reached == [[5, 7]]


def test_dapf_reach():
    """On a map of 40 x 80 a pixel sees, in each branch, a 3 x 3 grid at that branch's dilation."""
    module = DAPF(4, 1).double().eval()
    for bn in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.constant_(bn.bias, 10.0)  # keep every ReLU open
    x = torch.randn(1, 4, 40, 80, dtype=torch.float64, requires_grad=True)
    module(x)[0, :, 38, 40].sum().backward()
    reached = {tuple(pixel) for pixel in x.grad.abs().sum((0, 1)).nonzero().tolist()}
    assert reached == {
        (38 - up * d, 40 + side * d)
        for d in (0, 12, 24, 36)
        for up in (0, 1)
        for side in (-1, 0, 1)
    }


def test_aspp_pools_the_whole_map():
    module = ASPP(8, 4).eval()
    x = torch.randn(2, 8, 9, 11)
    pooled = module.pooled(x.mean((2, 3), keepdim=True))
    by_resize = F.interpolate(pooled, size=(9, 11), mode="bilinear", align_corners=True)
    branches = [module.conv1x1(x), *(branch(x) for branch in module.atrous), by_resize]
    torch.testing.assert_close(module(x), module.fuse(torch.cat(branches, 1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DAPF(32, 33), "alpha must be an integer from 1 to 32, got 33"),
        (lambda: DAPF(0), "inplanes must be an integer of at least 1, got 0"),
        (lambda: MDA(1, 2), "nIn must be at least 2.*got 1"),
        (lambda: MDA(32, 0), "d must be an integer of at least 1, got 0"),
        (lambda: HarDBlock(3, 8, 1.7, 0), "n_layers must be an integer of at least 1, got 0"),
        (lambda: HarDBlock(3, 8, 0.0, 4), "grmul must be positive, got 0.0"),
        (lambda: ASPP(8, 4, (0,)), "dilations must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
